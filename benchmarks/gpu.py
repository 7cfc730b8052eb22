"""Everything that needs a GPU, with one command: the tests marked `gpu`, then the prefill benchmark of every architecture.

    PYTHONPATH=src python benchmarks/gpu.py

Needs no video decoder. Every run is a process of its own; a failed one is reported and the others go on. Nothing new is started after
the deadline, and what was left out is named.
"""

import argparse
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
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--ratios", nargs="+", default=["0.25", "0.1"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attn", default="sdpa")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", default="5")
    parser.add_argument("--deadline", type=float, default=400, help="seconds after which no run is started")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args(arguments)

    # Only the files that have such tests: collecting the others would import what this machine may not have.
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-ra", *files]
    runs: dict[str, list[str]] = {} if options.no_tests or not files else {"tests": tests}
    for frames in options.frames:
        for arch in options.archs:
            run = [sys.executable, str(ROOT / "benchmarks" / "prefill.py"), "--arch", arch, "--frames", str(frames)]
            run += ["--dtype", options.dtype, "--attn", options.attn, "--device", options.device]
            run += ["--repeats", options.repeats, "--ratios", *options.ratios, "--output", str(options.output)]
            runs[f"{arch}, {frames} frames"] = run + (["--commit", options.commit] if options.commit else [])

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
