"""What needs a GPU, as two commands of at most six minutes each.

    PYTHONPATH=src python benchmarks/gpu.py first
    PYTHONPATH=src python benchmarks/gpu.py second

`first` has the most telling figures: both 7B shapes at 32 frames (stock, full and light policy at 25 and 10 %: every stage, first token with
vision, memory), then the tests marked `gpu`. `second` has more frames, batches, each optimisation, the smaller shapes, a static cache, 512 frames
and compiled models.

Every run is a process of its own, which writes each figure as soon as it is measured. A summary of all runs is rewritten after each. When
the budget is spent, the current run is stopped, no other is started, and what was not measured is named. The status is 1 if a run failed.
Needs no video decoder.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, GrowingResult, command

STARTED = time.monotonic()
LEAST_SECONDS = 20.0  # what starting a process and building a model take: nothing is started with less left
MARGIN_SECONDS = 10.0  # before the end of the budget, at which a run that can stops by itself
LARGE = ("llava-onevision-7b", "qwen2.5-vl-7b")
SMALL = ("llava-onevision-0.5b", "qwen2.5-vl-3b")


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        name: of the run, for people.
        script: in benchmarks/; None for the tests.
        arguments: of the script, or of pytest.
        stops: whether the script takes `--budget-seconds`.
    """

    name: str
    script: str | None
    arguments: list[str] = field(default_factory=list)
    stops: bool = False

    def command(self, options: argparse.Namespace, seconds: float) -> list[str]:
        """What is run, with `seconds` left."""
        if self.script is None:
            return [sys.executable, "-m", "pytest", "-m", "gpu", "-ra", *self.arguments]
        common = ["--dtype", options.dtype, "--device", options.device, "--repeats", options.repeats]
        common += ["--output", str(options.output)] + (["--commit", options.commit] if options.commit else [])
        budget = ["--budget-seconds", f"{max(seconds - MARGIN_SECONDS, 0):.0f}"] if self.stops else []
        return [sys.executable, str(ROOT / "benchmarks" / self.script), *self.arguments, *common, *budget]


def prefill(options: argparse.Namespace, arch: str, frames: int, what: str = "", *more: str) -> Run:
    """Every stage of the stock model and of both policies; `more` replaces earlier settings."""
    settings = ["--arch", arch, "--frames", str(frames), "--attn", options.attn, "--vision-repeats", "2"]
    settings += ["--ratios", "0.25", "0.1", "--policies", "full", "light", *more]
    return Run(", ".join(filter(None, [arch, f"{frames} frames", what])), "prefill.py", settings, stops=True)


def first(options: argparse.Namespace) -> list[Run]:
    """The most telling figures."""
    # Only the files that have such tests: collecting the others would import what this machine may not have.
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    tests = [] if options.no_tests or not files else [Run("tests", None, files)]
    return [*(prefill(options, arch, options.frames[0]) for arch in options.archs or LARGE), *tests]


def second(options: argparse.Namespace) -> list[Run]:
    """More of the first 7B shape, and the smaller ones; the slowest last."""
    long, *_ = options.archs or LARGE
    frames, *more_frames = options.frames
    light = ["--ratios", "0.25", "--policies", "light"]
    runs = [
        *(prefill(options, long, number) for number in more_frames[:1]),
        Run(f"{long}, batches", "throughput.py", ["--arch", long, "--frames", "8", "--batches", *options.batches]),
        *([] if "llava" not in long else [optimisations(long)]),
        *(prefill(options, arch, frames) for arch in (SMALL if options.archs is None else options.archs[1:])),
        prefill(options, long, frames, "static cache", *light, "--static-cache"),
    ]
    if importlib.util.find_spec("flash_attn") is not None and options.attn != "flash_attention_2":
        runs.append(prefill(options, long, frames, "flash attention", *light, "--attn", "flash_attention_2"))
    # A stock prefill of 512 frames is 100,000 positions.
    runs += [prefill(options, long, number, "", "--vision-repeats", "1") for number in more_frames[1:]]
    return [*runs, prefill(options, long, frames, "compiled", *light, "--compile")]


def optimisations(long: str) -> Run:
    """Each before and after; published shapes stand for themselves in the smallest."""
    arch = long if long.startswith("tiny") else "llava-onevision-0.5b"
    return Run(f"{arch}, optimisations", "optimisations.py", ["--arch", arch, "--frames", "32"])


PARTS: dict[str, Callable[[argparse.Namespace], list[Run]]] = {"first": first, "second": second}


def run_process(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run, print what it prints, and stop it after `seconds`.

    Returns:
        Its status (None if it was stopped) and the last line that it printed.
    """
    search_path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    last = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        status = process.wait()
    finally:
        timer.cancel()
    return (None if stopped.is_set() else status), last


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """The medians of a result file of prefill.py, in milliseconds, and its factors; of others nothing."""
    return {
        variant["name"]: {
            **{stage: round(sample["median"], 3) for stage, sample in variant["times_ms"].items()},
            **({"speedup": variant["speedup"]} if variant["speedup"] else {}),
        }
        for variant in record.get("variants", [])
    }


def main(
    arguments: list[str] | None = None,
    run: Callable[[list[str], float], tuple[int | None, str]] = run_process,
) -> int:
    """Measure one part within its budget; the status is 1 if a run failed."""
    began = STARTED if arguments is None else time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--budget-seconds", type=float, default=360, help="of the whole command")
    parser.add_argument(
        "--archs", nargs="+", help="instead of the published shapes; the first gets more frames and batches"
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--batches", nargs="+", default=["4", "16"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attn", default="sdpa")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", default="5")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args(arguments)

    def seconds_left() -> float:
        return options.budget_seconds - (time.monotonic() - began)

    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    record: dict[str, Any] = {"benchmark": "gpu", "command": command(), "config": config}
    record |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "runs": []}
    waiting = PARTS[options.part](options)
    summary = GrowingResult(options.output, f"gpu_{options.part}", record)
    failed = False
    while waiting and seconds_left() >= LEAST_SECONDS:
        current = waiting.pop(0)
        print(f"=== {current.name}", flush=True)
        before, start = set(options.output.glob("*.json")), time.monotonic()
        record["not_measured"] = [waits.name for waits in (current, *waiting)]
        summary.save()
        status, last = run(current.command(options, seconds_left()), seconds_left())
        failed = failed or status not in (0, None)
        outcome = {0: "done", None: "stopped when the budget was spent"}.get(status, f"failed with status {status}")
        written = sorted(set(options.output.glob("*.json")) - before - {summary.path})
        results = [json.loads(path.read_text()) for path in written]
        record["runs"].append(
            {
                "name": current.name,
                "outcome": outcome,
                "seconds": round(time.monotonic() - start, 1),
                "results": [path.name for path in written],
                "last_line": last,
                "figures": {name: value for result in results for name, value in figures(result).items()},
            }
        )
        for result in results[:1]:
            record |= {name: result[name] for name in ("commit", "dirty", "versions", "hardware")}
        stopped = status is None or any("stopped" in result for result in results)
        record["not_measured"] = [f"{current.name} (in part)"] * stopped + [waits.name for waits in waiting]
        record["seconds"] = round(time.monotonic() - began, 1)
        summary.save()
    record["not_measured"] = record.get("not_measured", [waits.name for waits in waiting])
    record["seconds"] = round(time.monotonic() - began, 1)
    path = summary.save()
    print(f"=== {options.part}, {record['seconds']:.0f} s: {path}")
    for done in record["runs"]:
        print(f"{done['name']}: {done['outcome']}, {done['seconds']:.0f} s")
    print(f"not measured: {', '.join(record['not_measured']) or 'nothing'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
