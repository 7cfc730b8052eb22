"""Tables of benchmark copies: rows of parquet, JSON, JSON lines and CSV files, which say where they stand."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.extras import pip_install
from ...utils.text_files import read_text
from ...utils.values import fault_of_line, is_missing, one_line, shown, text_of

_OTHER_VERSION = "it is of another version, or of another set"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        values: by column.
        path: of the table.
        number: of the row, from 1; of a file of JSON lines, the line's.
    """

    values: Mapping[str, Any]
    path: Path
    number: int

    @property
    def place(self) -> str:
        """For messages."""
        return f"row {self.number} of {self.path}"

    def field(self, name: str) -> Any:
        """Return the value of a column.

        Raises:
            ValueError: the table has none of that name.
        """
        if name not in self.values:
            columns = ", ".join(map(repr, self.values))
            raise ValueError(f"{self.path} has no column {name!r} (it has {shown(columns)[1:-1]}): {_OTHER_VERSION}.")
        return self.values[name]

    def get(self, name: str) -> Any:
        """Return the value of a column; None where the table has no such column, or no value there."""
        value = self.values.get(name)
        return None if is_missing(value) else value

    def text(self, name: str) -> str:
        """Return a text or a number as a text.

        Raises:
            ValueError: no such column, or neither text nor number.
        """
        return text_of(self.field(name), name)

    def seconds(self, name: str) -> float | None:
        """Return a time, or None where there is none.

        Raises:
            ValueError: not a number, or negative.
        """
        value = self.get(name)
        if value is None:
            return None
        try:
            time = float(value)
        except (TypeError, ValueError, OverflowError):
            time = math.nan
        if isinstance(value, bool) or not 0 <= time < math.inf:
            raise ValueError(f"{name}={shown(value)} is not a time: give seconds.")
        return time


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a `.parquet`, `.json` (a list of objects), `.jsonl`, `.csv` or `.tsv` file, in upper or lower case, with or without a byte order mark.

    Raises:
        ValueError: damaged, or not a list of objects.
        ImportError: parquet, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            rows: Any = enumerate(_read_parquet(path), start=1)
        elif suffix in (".csv", ".tsv"):
            rows = enumerate(_read_csv(read_text(path), "\t" if suffix == ".tsv" else ","), start=1)
        else:
            rows = _read_json(read_text(path), path)
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): copy or download it again.") from error
    if rows is None:
        raise ValueError(f"{path} is not a list of objects: {_OTHER_VERSION}.")
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path} is not a list of objects (row {number} is {shown(row)}): {_OTHER_VERSION}.")
        yield Row(row, path, number)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        ValueError: damaged.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): copy or download it again.") from error


def _read_json(text: str, path: Path) -> Any:
    """Numbered rows of a JSON array, or of JSON lines, whatever the file is named."""
    if path.suffix.lower() == ".json" and not _is_lines(text):
        value = json.loads(text)
        return enumerate(value, start=1) if isinstance(value, list) else None
    if text.lstrip().startswith("["):
        return enumerate(json.loads(text), start=1)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {fault_of_line(error)}") from error
    return rows


def _is_lines(text: str) -> bool:
    """Whether the first line that is not blank is a whole JSON object, and another follows."""
    lines = [line for line in text.split("\n", 20) if line.strip()][:2]
    try:
        return len(lines) == 2 and isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False


def _read_csv(text: str, delimiter: str) -> list[dict[str, Any]]:
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has another number of fields than the header")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError(f"Reading {path} needs pyarrow: {pip_install('eval')}") from None
    return parquet.read_table(path, partitioning=None).to_pylist()  # folders named a=b are no columns
