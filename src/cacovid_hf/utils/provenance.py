"""Where a figure comes from: date, commit, versions, hardware."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parents[3]
MEASURED_CODE = ("src",)


def environment(
    device: torch.device, commit: str | None = None, measured: Sequence[str] = MEASURED_CODE
) -> dict[str, Any]:
    """Date, commit, versions and hardware of this run.

    Args:
        device: the one that measures.
        commit: what git is asked for if None; needed where the code was copied without its history. None in the result if this is an installed package.
        measured: what of the repository a figure depends on; a change elsewhere does not make a run dirty.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or git("rev-parse", "HEAD"),
        "dirty": _dirty(measured) if commit is None else None,
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


def git(*arguments: str) -> str | None:
    """Return what git says in the repository of this package; None where there is none."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        run = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _dirty(measured: Sequence[str]) -> bool | None:
    changes = git("status", "--porcelain", "--", *measured)
    return None if changes is None else bool(changes)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
