"""One JSON a run: what ran, where, when, on which code. Files are added, never edited."""

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# What a figure depends on; a change elsewhere (docs, tests) does not make a run dirty.
MEASURED_CODE = ("src", "benchmarks/*.py")


def summarise(samples: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and all of `samples`, in their own unit."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": [round(sample, 4) for sample in samples],
    }


def environment(commit: str | None, device: "torch.device") -> dict[str, Any]:
    """Date, commit, versions and hardware of this run.

    Args:
        commit: what git is asked for if None; needed where the code was copied without its history.
        device: the one measured.
    """
    from cacovid_hf.utils import provenance  # here, so that gpu.py starts at once

    return provenance.environment(device, commit, MEASURED_CODE)


def write_result(directory: Path, name: str, record: dict[str, Any]) -> Path:
    """Write `record` as `directory/<name>_<date>.json`; a file of that name is never replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = record["date"].replace(":", "").replace("-", "").split("+")[0]
    target = directory / f"{name}_{stamp}.json"
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    try:
        os.link(temporary, target)  # unlike a rename, refuses to replace
    finally:
        temporary.unlink()
    return target


class GrowingResult:
    """A result file that is written again with every figure, so that a run that is stopped leaves what it had measured.

    Args:
        directory: folder of the file.
        name: its first part, as in `write_result`.
        record: what is written; whoever measures adds to it.
    """

    def __init__(self, directory: Path, name: str, record: dict[str, Any]):
        self.record = record
        self.path: Path | None = None
        self._place = directory, name

    def save(self) -> Path:
        """Write the record as it is now, all of it or nothing; the first time to a file that was not there."""
        if self.path is None:
            self.path = write_result(*self._place, self.record)
        else:
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.record, indent=1) + "\n")
            temporary.replace(self.path)
        return self.path


def command() -> str:
    """The command line of this run, from the repository."""
    module = sys.modules["__main__"].__spec__
    program = ["-m", module.name] if module else [os.path.relpath(sys.argv[0], ROOT)]
    return " ".join(["python", *program, *sys.argv[1:]])
