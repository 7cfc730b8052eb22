"""The JSON of a run: settings, environment, and one entry a finished cell."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.files import replaced
from ..utils.values import one_line

FORMAT = 1
_IDENTITY = ("dataset", "model", "method", "retention_ratio")


def identity(cell: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a table has one place for: dataset, model, method, ratio."""
    return (cell["dataset"]["name"], cell["model"]["name"], cell["method"]["label"], cell["retention_ratio"])


def read_run(path: Path) -> dict[str, Any]:
    """Return a run's JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({one_line(error)}): give a JSON that `cacovid evaluate` wrote."
        ) from error
    if not isinstance(run, dict) or run.get("benchmark") != "evaluation":
        raise ValueError(f"{path} is not a run of `cacovid evaluate`: give a JSON that it wrote.")
    if run.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {run.get('format')}, and this version reads {FORMAT}: run the evaluation again with another --output."
        )
    if damage := _damage(run):
        raise ValueError(
            f"{path} is damaged ({damage}): remove it, and the same `cacovid evaluate` makes it again from the logs beside it."
        )
    return run


def _damage(run: dict[str, Any]) -> str:
    """Return what of a run lacks what every reader of one needs; `""` if nothing does."""
    config, cells = run.get("config"), run.get("cells")
    for name in ("methods", "ratios", "models", "datasets"):
        if not isinstance(config, dict) or not isinstance(config.get(name), list):
            return f"config.{name} is not a list"
    if not isinstance(cells, list):
        return "cells is not a list"
    for number, cell in enumerate(cells, start=1):
        try:
            dataset, model, method, ratio = identity(cell)
            right = all(isinstance(name, str) for name in (dataset, model, method)) and isinstance(ratio, (int, float))
            right &= isinstance(cell["score"]["count"], int) and isinstance(cell["broken"]["count"], int)
            right &= isinstance(cell["outcomes"], str)
        except (KeyError, TypeError):
            right = False
        if not right:
            return f"cell {number} lacks its name, score or outcomes"
    return ""


def write_run(path: Path, run: dict[str, Any]) -> None:
    """Write under a temporary name, then rename: a reader sees the old run or the new one."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Refuse a second run that writes to the same file at the same time (where the system has file locks).

    Raises:
        ValueError: there is one.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"Another evaluation is writing {path}: wait for it, or give another --output.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def file_name(*words: Any) -> str:
    """Words as a file name."""
    return "_".join(
        re.sub(r"[^\w.=+-]+", "-", os.fspath(word) if isinstance(word, Path) else str(word)).strip("-.")
        for word in words
    )
