"""What a benchmark is: samples with a video, a prompt and an answer, and a metric of its own."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers.utils import logging

from ...utils.option_letters import extract_choice, right_letter
from ...utils.options import have_letters, letters, read_options, unpacked
from ...utils.values import one_line, text_of
from .local_copy import LocalCopy
from .tables import Row, read_rows

logger = logging.get_logger(__name__)


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
        problem: why it cannot be asked, such as an answer that is not an option: it counts neither right nor wrong, like a video that cannot be
            read; `""` if it can.
    """

    id: str
    video: Clip | np.ndarray
    prompt: str
    answer: str | None
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    video_id: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, as fractions, over `count` samples."""

    value: float
    standard_error: float
    count: int

    def as_json(self) -> dict[str, float | int]:
        """Return the fields, for a result file."""
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
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return a sample; always the same for the same index."""

    @property
    def settings(self) -> dict[str, Any]:
        """What, beside the name, decides which samples there are."""
        return {}

    def extract(self, response: str, sample: Sample) -> str:
        """Return the answer that a response gives, `""` if none."""
        return extract_choice(response, dict(zip(letters(len(sample.options)), sample.options, strict=True)))

    def submission(self, answers: dict[str, str]) -> Any:
        """Return what the benchmark's server takes, from sample ids to extracted answers."""
        return answers

    def score(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the metric and its breakdown over answered rows (`correct`, `groups`, `video_id`); `value` is None if no row has an answer."""
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
    """Return the mean of `correct`, or the mean over the parts of a group of their means, and its standard error.

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
    """A benchmark read from a folder. A subclass names its tables and says how a row becomes a sample and which option is right.

    All parts of a table are read, whatever their byte order mark and the capitals of their names. The answer of each row must be one of its options
    (see `utils.option_letters.right_letter`): single rows that fail this are reported with their reason and count neither right nor wrong.

    Args:
        root: folder of the local copy.
        limit: only the first so many samples.

    Raises:
        ValueError: the folder is not a copy of the benchmark, a row of it is damaged, or no answer of a table is an option.
    """

    patterns: ClassVar[tuple[str, ...]] = ()
    """Names of the tables from the root; the first that any file fits is read."""
    answer_is: ClassVar[str] = "letter"
    """What counts if an answer is the letter of one option and the text of another: `letter` or `text`."""

    def __init__(self, root: Path, limit: int | None = None):
        if not root.is_dir():
            raise ValueError(
                f"{self.name}: {root} is not a folder: give the folder of a local copy, as {self.name}=FOLDER."
            )
        self.root, self.limit = root, limit
        self.copy = LocalCopy(root)
        try:
            self.samples = self.read()[:limit]
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if not self.samples:
            raise ValueError(f"{self.name}: {root} holds no question: check the local copy.")
        if problems := [sample.problem for sample in self.samples if sample.problem]:
            logger.warning(
                f"{self.name}: {len(problems)} of {len(self.samples)} questions cannot be asked and count neither right nor wrong, such as {problems[0]}"
            )

    @abstractmethod
    def sample(self, row: Row) -> Sample | None:
        """Return the sample of a row, without its answer; None: it is not of this set.

        Raises:
            ValueError: the row is damaged.
        """

    def answer(self, row: Row, options: dict[str, str]) -> str | None:
        """Return the letter of the right option among `options`, texts by letter; None where it is withheld.

        Raises:
            ValueError: there is no such column, or the answer is not an option.
        """
        row.field("answer")
        given = row.get("answer")
        return None if given is None or given == "" else right_letter(given, options, self.answer_is)

    def read(self) -> list[Sample]:
        """All samples up to the limit, in the order of the files."""
        samples: list[Sample] = []
        table_of: dict[str, Path] = {}
        for path in self.copy.tables(*self.patterns):
            for sample in self._of_table(path, None if self.limit is None else self.limit - len(samples)):
                if table_of.setdefault(sample.id, path) != path:
                    raise ValueError(
                        f"question {sample.id!r} is in {table_of[sample.id]} and in {path}: remove the table that is not of this set."
                    )
                samples.append(sample)
        return samples

    def _of_table(self, path: Path, limit: int | None) -> list[Sample]:
        samples: list[Sample] = []
        answered, refused = 0, ""
        for row in read_rows(path):
            if limit is not None and len(samples) >= limit:
                break
            try:
                if (sample := self.sample(row)) is None:
                    continue
                text_of(sample.prompt, "the prompt")
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                reason = one_line(error)
                raise ValueError(
                    reason if str(path) in reason else f"{row.place}: {reason.rstrip('.')}: correct the row."
                ) from error
            if not sample.problem:
                try:
                    answer = self.answer(row, dict(zip(letters(len(sample.options)), sample.options, strict=True)))
                except ValueError as error:
                    sample = replace(sample, problem=f"{row.place}: {one_line(error)}")
                else:
                    answered += answer is not None
                    sample = replace(sample, answer=answer)
            refused = refused or sample.problem
            samples.append(sample)
        if refused and not answered:
            raise ValueError(refused)
        return samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at `index`."""
        return self.samples[index]

    @property
    def settings(self) -> dict[str, Any]:
        """The limit."""
        return {"limit": self.limit}


def choices_of(
    options: Any, label: str = "{letter}. {text}", keep_letters: bool = True
) -> tuple[tuple[str, ...], list[str]]:
    """Texts of options without letters, and the lines in which they are asked.

    Args:
        options: in any form that `utils.options.read_options` takes.
        label: of options without letters.
        keep_letters: whether options that have letters are asked as they stand.

    Raises:
        ValueError: not options, or letters that leave one out.
    """
    options = unpacked(options)
    texts = read_options(options)
    if "".join(texts) != letters(len(texts)):
        raise ValueError(f"options have the letters {', '.join(texts)}: name them in a row.")
    shown: Iterable[str] = texts.values()
    if isinstance(options, (list, tuple)) and all(isinstance(option, str) for option in options):
        if not have_letters(options):
            shown = options
        elif keep_letters:
            return tuple(texts.values()), list(options)
    return tuple(texts.values()), [
        label.format(letter=letter, text=text) for letter, text in zip(texts, shown, strict=True)
    ]
