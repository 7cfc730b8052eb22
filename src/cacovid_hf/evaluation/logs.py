"""The per-sample log of a cell: JSON lines, appended batch by batch, merged when the cell is complete.

Every process appends to a part of its own. A part that a killed process left ends in a whole line or half of one; the half is dropped. A damaged
line is dropped too, and said: its question is asked again.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..utils.files import named_if_full, replaced
from ..utils.values import fault_of_line, shown

logger = logging.get_logger(__name__)

Row = dict[str, Any]


def is_answered(row: Row) -> bool:
    """Whether a row holds an answer, not why there is none."""
    return "error" not in row and "refused" not in row


class CellLog:
    """Rows of one cell by sample index.

    Args:
        folder: of the run's logs, made if missing.
        name: of the cell.
        check: raises a ValueError for a row that is not one of the cell's, such as `check_row`.
    """

    def __init__(self, folder: Path, name: str, check: Callable[[Row], None] = lambda row: None):
        self.folder, self.name, self.check = folder, name, check
        self._told: set[str] = set()

    @property
    def path(self) -> Path:
        """The merged log."""
        return self.folder / f"{self.name}.jsonl"

    def parts(self) -> list[Path]:
        """Return what processes have written and is not merged yet."""
        return sorted(self.folder.glob(f"{self.name}.part*.jsonl"))

    def read(self) -> dict[int, Row]:
        """All whole rows, by index; those of one index that are answered are equal but for their times. The last one counts, an answer before an
        error. Damaged lines are left out, with one warning each.
        """
        rows: dict[int, Row] = {}
        for path in [self.path, *self.parts()]:
            if path.is_file():
                for row in self._whole_rows(path):
                    if is_answered(row) or not is_answered(rows.get(row["index"], row)):
                        rows[row["index"]] = row
        return rows

    def append(self, rows: Iterable[Row], part: int) -> None:
        """Add rows to this process's part, in one write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.part{part}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with named_if_full(path), path.open("a+b") as file:
            size = file.tell()
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # half a line of a process that was killed
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(text.encode("utf-8", "backslashreplace"))

    def merge(self) -> None:
        """Write all rows in the order of the samples to the merged log, and remove the parts."""
        rows = self.read()
        text = "".join(json.dumps(rows[index], ensure_ascii=False) + "\n" for index in sorted(rows))
        with replaced(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        for path in self.parts():
            path.unlink()

    def remove(self) -> None:
        """Forget all rows."""
        for path in [self.path, *self.parts()]:
            path.unlink(missing_ok=True)

    def _whole_rows(self, path: Path) -> list[Row]:
        rows = []
        # Behind the last newline there is nothing, or half a line.
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            if not line.strip():
                continue
            try:
                rows.append(self._row(line))
            except (ValueError, RecursionError) as error:
                place = f"{path}, line {number}"
                if place not in self._told:
                    self._told.add(place)
                    logger.warning(
                        f"{place} is damaged ({fault_of_line(error)}): it is dropped, and its question is asked again."
                    )
        return rows

    def _row(self, line: bytes) -> Row:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"{shown(row)} is not an object")
        if not _is_whole(row.get("index")) or row["index"] < 0:
            raise ValueError(f"index={shown(row.get('index'))} is not the number of a sample")
        self.check(row)
        return row


def check_row(row: Row, num_samples: int, stages: Iterable[str]) -> None:
    """Make sure that a row has what a cell is summed up from.

    Args:
        row: with an index.
        num_samples: of the benchmark.
        stages: of which an answered row has the times.

    Raises:
        ValueError: something is missing or of a wrong type, or it belongs to no sample.
    """

    def need(right: bool, name: str) -> None:
        if not right:
            raise ValueError(f"{name}={shown(row.get(name))}")

    need(row["index"] < num_samples, "index")
    if "refused" in row:
        need(isinstance(row["refused"], str), "refused")
        return
    need(isinstance(row.get("id"), str), "id")
    need(isinstance(row.get("video_id"), str), "video_id")
    groups = row.get("groups")
    need(isinstance(groups, dict) and all(isinstance(part, str) for part in groups.values()), "groups")
    if "error" in row:
        need(isinstance(row["error"], str), "error")
        return
    answer, times, peak = row.get("answer", ""), row.get("times_ms"), row.get("peak_memory_bytes")
    need(isinstance(row.get("extracted"), str), "extracted")
    need("answer" in row and (answer is None or isinstance(answer, str)), "answer")
    need(row.get("correct", "") is (None if answer is None else row["extracted"] == answer), "correct")
    need(_is_amount(row.get("kept")), "kept")
    need(_is_whole(row.get("total")) and row["total"] >= 0, "total")
    need(isinstance(times, dict) and all(_is_amount(times.get(stage)) for stage in stages), "times_ms")
    need("peak_memory_bytes" in row and (peak is None or _is_amount(peak)), "peak_memory_bytes")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_amount(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and 0 <= value < math.inf
