"""One JSON a run: what ran, where, when, on which code. Files are added, never edited."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

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


def environment(commit: str | None, device: torch.device) -> dict[str, Any]:
    """Date, commit, versions and hardware of this run.

    Args:
        commit: what git is asked for if None; needed where the code was copied without its history.
        device: the one measured.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _git("rev-parse", "HEAD"),
        "dirty": _dirty() if commit is None else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            # Above the number of threads: other processes shared the cores, and times are longer than on a quiet machine.
            "load_average_at_start": round(os.getloadavg()[0], 2),
        },
    }


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


def command() -> str:
    """The command line of this run."""
    return " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _dirty() -> bool | None:
    changes = _git("status", "--porcelain", "--", *MEASURED_CODE)
    return None if changes is None else bool(changes)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
