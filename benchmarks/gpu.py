"""Everything that needs a GPU, with one command: the tests marked `gpu`, then every benchmark of stages, memory, decoding and batches.

The prefill benchmark of every architecture at 32 frames (stock, full and light policy at 25 and 10 %: time of every stage, memory, cache bytes, decode
steps), then the largest at more frames; batches; each optimisation before and after; selection by itself.

    PYTHONPATH=src python benchmarks/gpu.py

Needs no video decoder. Every run is a process of its own; a failed one is reported and the others go on. Nothing new is started after
the deadline, and what was left out is named.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from architectures import ARCHITECTURES
from record import RESULTS, ROOT

# Cheapest first: what does not fit before the deadline is the longest run of the largest model.
PUBLISHED = sorted(
    (name for name in ARCHITECTURES if not name.startswith("tiny")), key=lambda name: name.endswith("7b")
)


def main(arguments: list[str] | None = None) -> int:
    """Run everything; the exit status is 1 if anything failed or was left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", choices=list(ARCHITECTURES), nargs="+", default=PUBLISHED)
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128, 512], help="the first of every architecture")
    parser.add_argument("--long", choices=list(ARCHITECTURES), nargs="+", default=["llava-onevision-7b"])
    parser.add_argument("--batches", nargs="+", default=["4", "16"])
    parser.add_argument("--ratios", nargs="+", default=["0.25", "0.1"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attn", default="sdpa")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", default="5")
    parser.add_argument("--deadline", type=float, default=1200, help="seconds after which no run is started")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args(arguments)

    # Only the files that have such tests: collecting the others would import what this machine may not have.
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-ra", *files]
    runs: dict[str, list[str]] = {} if options.no_tests or not files else {"tests": tests}
    common = ["--dtype", options.dtype, "--device", options.device, "--repeats", options.repeats]
    common += ["--output", str(options.output)] + (["--commit", options.commit] if options.commit else [])

    def script(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "benchmarks" / name), *arguments, *common]

    for frames in options.frames:
        for arch in options.archs if frames == options.frames[0] else [a for a in options.archs if a in options.long]:
            # A stock prefill of 512 frames is 100,000 positions.
            once = ["--vision-repeats", "1"] if frames > 128 else []
            settings = ["--attn", options.attn, "--ratios", *options.ratios, "--policies", "full", "light", *once]
            runs[f"{arch}, {frames} frames"] = script("prefill.py", "--arch", arch, "--frames", str(frames), *settings)
    for arch in options.archs:
        if arch in options.long:
            sizes = ["--frames", "8", "--batches", *options.batches]
            runs[f"batches, {arch}"] = script("throughput.py", "--arch", arch, *sizes)
            compiled = [
                "--frames",
                str(options.frames[0]),
                "--ratios",
                "0.25",
                "--policies",
                "light",
                "--attn",
                options.attn,
            ]
            runs[f"static cache, {arch}"] = script("prefill.py", "--arch", arch, *compiled, "--static-cache")
            if importlib.util.find_spec("flash_attn") is not None and options.attn != "flash_attention_2":
                flash = [*compiled, "--attn", "flash_attention_2"]
                runs[f"flash attention, {arch}"] = script("prefill.py", "--arch", arch, *flash)
            runs[f"compiled, {arch}"] = script("prefill.py", "--arch", arch, *compiled, "--compile")
    if "llava-onevision-0.5b" in options.archs:
        runs["optimisations"] = script("optimisations.py", "--frames", "32")

    search_path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    start, outcome = time.monotonic(), {}
    for name, run in runs.items():
        if time.monotonic() - start > options.deadline:
            outcome[name] = "left out: the deadline has passed"
            continue
        print(f"=== {name}", flush=True)
        began = time.monotonic()
        status = subprocess.run(run, cwd=ROOT, env={**os.environ, "PYTHONPATH": search_path}).returncode
        outcome[name] = (
            f"{'done' if status == 0 else f'FAILED with status {status}'} in {time.monotonic() - began:.0f} s"
        )
    print(f"=== summary, {time.monotonic() - start:.0f} s")
    for name, what in outcome.items():
        print(f"{name}: {what}")
    return int(any(not what.startswith("done") for what in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
