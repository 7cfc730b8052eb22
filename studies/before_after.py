"""Is a commit slower than an earlier one? The same calls and benchmarks in two checkouts, which take turns: one JSON.

    git worktree add ../before COMMIT
    python -m studies.before_after ../before . --calls 200 -- prefill --arch tiny-llava-onevision --device cpu --clock cpu

Calls first: two processes are asked by turns for one call each (`timed_calls.py`), so that what else the machine does meets both alike.
Behind `--`: a script of `benchmarks/` and its options. It may stand there several times. Each checkout runs its own script on its own sources, in a
process of its own for each round. The order turns from round to round. Every time that both of them report is compared by its least and its median over all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import command, summarise, write_result
from cacovid_hf.utils.provenance import git
from studies.cells import RESULTS, environment

NOTES = [
    "samples: milliseconds, all rounds together; ratio: the later checkout's over the earlier one's, below 1 is faster.",
    "paired, of calls: the median of the ratios of two calls that followed each other; what else the machine does disturbs it least.",
    "Calls and prefill of the stock model run no code of this package: their ratios say how exact the others are.",
]
Times = dict[str, list[float]]


def times_of(record: dict[str, Any]) -> Times:
    """The samples of a benchmark's JSON in ms, by case and stage: of `prefill` (variants) and `optimisations` (cases)."""
    found: Times = {}
    for part in [*record.get("variants", ()), *record.get("cases", ())]:
        for stage, summary in part["times_ms"].items():
            found[f"{part['name']}: {stage}"] = summary["samples"]
    if "vision_ms" in record:
        found["vision"] = record["vision_ms"]["samples"]
    return found


def compared(before: Times, after: Times) -> list[dict[str, Any]]:
    """A row for each time that both have: summaries, and the ratios of the least and of the median."""
    rows = []
    for name in [name for name in before if name in after]:
        one, other = summarise(before[name]), summarise(after[name])
        ratios = {figure: round(other[figure] / one[figure], 4) for figure in ("min", "median")}
        rows.append({"name": name, "before": one, "after": other, "ratio": ratios})
    return rows


def run(checkout: Path, words: list[str]) -> dict[str, Any]:
    """The JSON of one benchmark in one checkout."""
    with tempfile.TemporaryDirectory() as folder:
        script, *options = words
        line = [sys.executable, f"benchmarks/{script}.py", *options, "--output", folder]
        paths = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        subprocess.run(line, cwd=checkout, env=paths, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).glob("*.json")
        return json.loads(path.read_text(encoding="utf-8"))


def timed(checkouts: dict[str, Path], count: int) -> dict[str, Times]:
    """So many calls of every kind in each checkout, by turns; three before them are not noted."""
    script = Path(__file__).with_name("timed_calls.py")
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name, checkout in checkouts.items()
    }
    try:
        # Both are asked, so that both are ready.
        kinds, _ = (json.loads(worker.stdout.readline()) for worker in workers.values())  # type: ignore[union-attr]
        times: dict[str, Times] = {name: {kind: [] for kind in kinds} for name in workers}
        for number in range(-3, count):
            for kind in kinds:
                for name in list(workers) if number % 2 else list(workers)[::-1]:
                    print(kind, file=workers[name].stdin, flush=True)
                    milliseconds = float(workers[name].stdout.readline())  # type: ignore[union-attr]
                    if number >= 0:
                        times[name][kind].append(milliseconds)
        return times
    finally:
        for worker in workers.values():
            worker.stdin.close()  # type: ignore[union-attr]
            worker.wait()


def paired(before: Times, after: Times) -> list[dict[str, Any]]:
    """As `compared`, of samples that belong together in their order."""
    rows = compared(before, after)
    for row in rows:
        ratios = [other / one for one, other in zip(before[row["name"]], after[row["name"]], strict=True)]
        row["ratio"]["paired"] = round(statistics.median(ratios), 4)
    return rows


def split(words: list[str]) -> Iterator[list[str]]:
    """The parts of a list of words between `--`."""
    while "--" in words:
        place = words.index("--")
        yield words[:place]
        words = words[place + 1 :]
    yield words


def main(arguments: list[str] | None = None) -> Path:
    """Run all rounds and return the path of the JSON."""
    own, *benchmarks = split(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="checkout of the earlier commit")
    parser.add_argument("after", type=Path, help="checkout of the later one")
    parser.add_argument("--calls", type=int, default=0, help="of every kind in each checkout")
    parser.add_argument("--rounds", type=int, default=3, help="of the benchmarks")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(own)
    checkouts = {"before": options.before.resolve(), "after": options.after.resolve()}
    record: dict[str, Any] = {"benchmark": "before_after", "command": command(), **environment()}
    record["config"] = {
        "calls": options.calls,
        "rounds": options.rounds,
        "benchmarks": [" ".join(words) for words in benchmarks],
    }
    commits = {name: git("-C", str(checkout), "rev-parse", "HEAD") for name, checkout in checkouts.items()}
    record |= {"notes": NOTES, "commits": commits, "results": {}}
    if options.calls:
        times = timed(checkouts, options.calls)
        record["results"]["calls"] = paired(times["before"], times["after"])
        for row in record["results"]["calls"]:
            print(f"{row['name']}: paired x{row['ratio']['paired']:.3f}, median x{row['ratio']['median']:.3f}")
    for words in benchmarks:
        found: dict[str, Times] = {name: defaultdict(list) for name in checkouts}
        for number in range(options.rounds):
            for name in list(checkouts) if number % 2 == 0 else list(checkouts)[::-1]:
                for case, samples in times_of(run(checkouts[name], words)).items():
                    found[name][case] += samples
        rows = compared(found["before"], found["after"])
        record["results"][" ".join(words)] = rows
        for row in rows:
            print(f"{row['name']}: least x{row['ratio']['min']:.3f}, median x{row['ratio']['median']:.3f}")
    return write_result(options.output, "before_after", record)


if __name__ == "__main__":
    print(main())
