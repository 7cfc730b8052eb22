"""Results that take long, cell by cell: one JSON per cell, and a cell that is there is not run again."""

import fnmatch
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.record import ROOT, command
from cacovid_hf.utils import provenance
from cacovid_hf.utils.files import replaced

RESULTS = ROOT / "studies" / "results"
# What a figure depends on; a change elsewhere (docs, tests) does not make a run dirty.
MEASURED_CODE = ("src", "studies/*.py", "benchmarks/record.py")

Job = Callable[[], dict[str, Any]]


def environment(commit: str | None = None) -> dict[str, Any]:
    """Date, commit, versions and hardware of this run on the CPU; `commit` is what git is asked for if None."""
    return provenance.environment(torch.device("cpu"), commit, MEASURED_CODE)


def chosen(jobs: dict[str, Job], patterns: Iterable[str]) -> dict[str, Job]:
    """The jobs whose name fits one of the patterns; all of them if there is no pattern."""
    patterns = list(patterns) or ["*"]
    return {name: job for name, job in jobs.items() if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


@dataclass(frozen=True)
class Cells:
    """The cells of a study.

    Args:
        study: its name, written into every cell.
        folder: of the JSON files.
        work: of the lock files, which are not committed.
        commit: of the code, where git cannot tell.
    """

    study: str
    folder: Path
    work: Path = ROOT / "build" / "studies"
    commit: str | None = None

    def path(self, name: str) -> Path:
        """Where the cell's JSON stands."""
        return self.folder / f"{name.replace('/', '__').replace(' ', '_').replace(':', '_').replace(',', '')}.json"

    def is_there(self, name: str) -> bool:
        """Whether the cell was run."""
        return self.path(name).exists()

    def read(self, name: str) -> dict[str, Any]:
        """What the cell holds."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def run_one(self, name: str, job: Job) -> None:
        """Run one cell, whether it is there or not, and write its JSON in one step."""
        begun, spent = time.perf_counter(), time.process_time()
        cell = {"benchmark": self.study, "cell": name, "command": command(), **environment(self.commit), **job()}
        cell["seconds"] = round(time.perf_counter() - begun, 1)
        cell["core_seconds"] = round(time.process_time() - spent, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(self.path(name)) as temporary:
            temporary.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
        print(f"done in {cell['seconds']:.0f} s  {name}", flush=True)

    def run(self, jobs: dict[str, Job], waits_for: Callable[[str], str | None] = lambda name: None) -> None:
        """Run the cells that are missing, until all are there.

        Any number of processes may do so at the same time: what another one is at is left to it.

        Args:
            jobs: what makes each cell.
            waits_for: the cell, if any, that must be there before the one of this name.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        waiting = list(jobs)
        while waiting:
            left = []
            for name in waiting:
                before = waits_for(name)
                if self.is_there(name):
                    print(f"there  {name}", flush=True)
                elif before in waiting and not self.is_there(before):
                    left.append(name)
                else:
                    try:
                        with FileLock(self.work / f".{self.study}__{self.path(name).stem}.lock", blocking=False):
                            if not self.is_there(name):
                                self.run_one(name, jobs[name])
                    except Timeout:
                        left.append(name)
            if left == waiting:
                time.sleep(2)
            waiting = left
