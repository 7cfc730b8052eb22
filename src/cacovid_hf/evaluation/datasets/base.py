"""What a benchmark is: samples with a video, a prompt and an answer, and a metric of its own."""

import csv
import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...extras import pip_install
from ...utils.options import letters
from ..answers import extract_choice

VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True)
class Clip:
    """A video file, or a folder of pictures.

    Attributes:
        path: where it lies; it need not exist (then its sample is reported as broken).
        start: seconds; only what follows is shown.
        end: seconds; only what precedes is shown.
        fps: pictures a second of a folder of pictures.
    """

    path: Path
    start: float | None = None
    end: float | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique in its benchmark.
        video: a clip, or decoded frames uint8 `(T, H, W, 3)`.
        prompt: the whole text, options and instructions included.
        answer: the right one, as `Benchmark.extract` returns it; None where it is withheld.
        options: texts of the options, empty for an open question.
        groups: what the metric and the breakdown group by, such as `{"duration": "short"}`.
        video_id: samples with the same one share a video, so that their errors are correlated.
    """

    id: str
    video: Clip | np.ndarray
    prompt: str
    answer: str | None
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    video_id: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, as fractions, over `count` samples."""

    value: float
    standard_error: float
    count: int

    def as_json(self) -> dict[str, float | int]:
        """The fields, for a result file."""
        return {"value": self.value, "standard_error": self.standard_error, "count": self.count}


class Benchmark(ABC):
    """A sequence of samples and how they are scored.

    A subclass has a `name`, makes its samples and, unless it is plain accuracy, names the group over whose parts its metric is the mean.
    """

    name: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    macro_group: ClassVar[str | None] = None
    """The metric is the mean over the parts of this group of their accuracies; None: over all samples."""
    breakdown: ClassVar[tuple[str, ...]] = ()
    """Groups whose parts are reported beside the metric."""
    max_new_tokens: ClassVar[int] = 16
    protocol: ClassVar[str] = ""
    """Whose prompt and metric, and every departure."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """A sample; always the same for the same index."""

    @property
    def settings(self) -> dict[str, Any]:
        """What, beside the name, decides which samples there are."""
        return {}

    def extract(self, response: str, sample: Sample) -> str:
        """The answer that a response gives, `""` if none."""
        return extract_choice(response, sample.options)

    def submission(self, answers: dict[str, str]) -> Any:
        """What the benchmark's server takes, from sample ids to extracted answers."""
        return answers

    def score(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The metric and its breakdown over answered rows (`correct`, `groups`, `video_id`); `value` is None if no row has an answer."""
        rows = [row for row in rows if row.get("correct") is not None]
        if not rows:
            return {"metric": self.metric, "value": None, "standard_error": None, "count": 0, "parts": {}}
        parts = {
            group: {part: clustered_mean(chosen).as_json() for part, chosen in sorted(grouped(rows, group).items())}
            for group in dict.fromkeys((*self.breakdown, *([self.macro_group] if self.macro_group else ())))
        }
        return {"metric": self.metric, **clustered_mean(rows, self.macro_group).as_json(), "parts": parts}


def grouped(rows: Sequence[dict[str, Any]], group: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by their part of a group, those without one left out."""
    result: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if group in row["groups"]:
            result[row["groups"][group]].append(row)
    return dict(result)


def clustered_mean(rows: Sequence[dict[str, Any]], macro_group: str | None = None) -> Estimate:
    """The mean of `correct`, or the mean over the parts of a group of their means, and its standard error.

    Errors of questions on one video are summed before they are squared (Miller, arXiv 2411.00640), which for videos with one question
    each is the binomial standard error.
    """
    strata = grouped(rows, macro_group) if macro_group else {"": list(rows)}
    value = 0.0
    sums: dict[str, float] = defaultdict(float)
    for chosen in strata.values():
        mean = sum(row["correct"] for row in chosen) / len(chosen)
        value += mean / len(strata)
        for row in chosen:
            sums[row["video_id"] or row["id"]] += (row["correct"] - mean) / (len(chosen) * len(strata))
    return Estimate(value, math.sqrt(sum(total**2 for total in sums.values())), sum(map(len, strata.values())))


class FileBenchmark(Benchmark):
    """A benchmark read from a folder; a subclass says how in `read`.

    Args:
        root: folder of the local copy.
        limit: only the first so many samples.
    """

    def __init__(self, root: Path, limit: int | None = None):
        if not root.is_dir():
            raise ValueError(
                f"{self.name}: {root} is not a folder: give the folder of a local copy, as {self.name}=FOLDER."
            )
        self.root, self.limit = root, limit
        self.samples = self.read()[:limit]
        if not self.samples:
            raise ValueError(f"{self.name}: {root} holds no question: check the local copy.")

    @abstractmethod
    def read(self) -> list[Sample]:
        """All samples, in the order of the files."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`."""
        return self.samples[index]

    @property
    def settings(self) -> dict[str, Any]:
        """The limit."""
        return {"limit": self.limit}

    def file(self, *patterns: str) -> Path:
        """The first file that fits the first pattern that any fits, below the root.

        Raises:
            ValueError: there is none.
        """
        files = self.files(*patterns)
        return files[0]

    def files(self, *patterns: str) -> list[Path]:
        """All files that fit the first pattern that any fits, sorted."""
        for pattern in patterns:
            if found := sorted(path for path in self.root.glob(pattern) if path.is_file()):
                return found
        raise ValueError(
            f"{self.name}: nothing in {self.root} is named {' or '.join(patterns)}: give the folder of a complete local copy."
        )

    def video(self, stem: str, *folders: str) -> Path:
        """The file (or folder of pictures) of a video, given by its name with or without a suffix, in the first of `folders` that has it; else
        where it should be.
        """
        wanted = [""] if Path(stem).suffix in VIDEO_SUFFIXES else [*VIDEO_SUFFIXES, ""]
        for folder in folders:
            for suffix in wanted:
                if (path := self.root / folder / f"{stem}{suffix}").exists():
                    return path
        return self.root / folders[0] / f"{stem}{wanted[0]}"

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a table, each a dict."""
        return read_table(path, self.name)

    def field(self, row: dict[str, Any], name: str, path: Path) -> Any:
        """A field of a row.

        Raises:
            ValueError: the table has none of that name.
        """
        if name not in row:
            raise ValueError(
                f"{self.name}: {path} has no column {name!r} (it has {', '.join(map(repr, row))}): it is of another version, or of another set."
            )
        return row[name]


def read_table(path: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a `.parquet`, `.json` (a list of objects), `.jsonl` or `.csv` file.

    Raises:
        ValueError: damaged, or not a list of objects.
        ImportError: parquet, and pyarrow is not installed.
    """
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows: Any = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {path} cannot be read ({error}): copy or download it again.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}: {path} is not a list of objects: it is of another version, or of another set.")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError(f"Reading {path} needs pyarrow: {pip_install('eval')}") from None
    return parquet.read_table(path).to_pylist()


def lettered(options: Sequence[str], label: Callable[[str, str], str]) -> list[str]:
    """Lines of options, each made by `label(letter, option)`."""
    return [label(letter, option) for letter, option in zip(letters(len(options)), options, strict=True)]


def without_labels(options: Sequence[str]) -> tuple[str, ...]:
    """Texts of options without their labels (`A. red`, `(A) red` -> `red`)."""
    texts = []
    for letter, option in zip(letters(len(options)), options, strict=True):
        text = option.strip()
        for label in (f"({letter})", f"{letter}.", f"{letter})", f"{letter}:"):
            if text.startswith(label):
                text = text[len(label) :]
                break
        texts.append(text.strip())
    return tuple(texts)
