"""The per-sample log of a cell: JSON lines, appended batch by batch, merged when the cell is complete.

Every process appends to a part of its own. A part that a killed process left ends in a whole line or half of one; the half is dropped.
"""

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def is_answered(row: Row) -> bool:
    """Whether a row holds an answer, not why there is none."""
    return "error" not in row and "refused" not in row


class CellLog:
    """Rows of one cell by sample index.

    Args:
        folder: of the run's logs, made if missing.
        name: of the cell.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name

    @property
    def path(self) -> Path:
        """The merged log."""
        return self.folder / f"{self.name}.jsonl"

    def parts(self) -> list[Path]:
        """What processes have written and is not merged yet."""
        return sorted(self.folder.glob(f"{self.name}.part*.jsonl"))

    def read(self) -> dict[int, Row]:
        """All whole rows, by index; those of one index that are answered are equal but for their times. The last one counts, an answer before an
        error.
        """
        rows: dict[int, Row] = {}
        for path in [self.path, *self.parts()]:
            if path.is_file():
                for row in _whole_rows(path):
                    if is_answered(row) or not is_answered(rows.get(row["index"], row)):
                        rows[row["index"]] = row
        return rows

    def append(self, rows: Iterable[Row], part: int) -> None:
        """Add rows to this process's part, in one write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.part{part}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with path.open("a+b") as file:
            size = file.tell()
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # half a line of a process that was killed
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(text.encode())

    def merge(self) -> None:
        """Write all rows in the order of the samples to the merged log, and remove the parts."""
        rows = self.read()
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        text = "".join(json.dumps(rows[index], ensure_ascii=False) + "\n" for index in sorted(rows))
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)
        for path in self.parts():
            path.unlink()

    def remove(self) -> None:
        """Forget all rows."""
        for path in [self.path, *self.parts()]:
            path.unlink(missing_ok=True)


def _whole_rows(path: Path) -> list[Row]:
    lines = path.read_bytes().split(b"\n")
    rows = []
    for line in lines[:-1]:  # behind the last newline there is nothing, or half a line
        if line.strip():
            rows.append(json.loads(line))
    return rows
