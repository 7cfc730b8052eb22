"""LongVideoBench (arXiv 2407.15754), in the layout of its authors, asked as lmms-eval 0.7.3 does."""

from typing import Any, ClassVar

from ...utils.options import index_letter
from ...utils.values import is_missing
from .base import Clip, FileBenchmark, Sample, choices_of
from .tables import Row, read_json


class LongVideoBench(FileBenchmark):
    """The validation set: 1,337 questions with two to five options, on videos of 8 seconds to an hour.

    Layout: `lvb_val.json` (`id`, `video_path`, `question`, `candidates`, `correct_choice`, `duration_group`, `question_category`, `subtitle_path`,
    `starting_timestamp_for_subtitles`) or `validation-*.parquet` (`option0` to `option4`, `"N/A"` where there is none), `videos/`, `subtitles/`.
    """

    name = "longvideobench"
    breakdown = ("duration_group", "question_category")
    max_new_tokens = 32
    protocol = "prompt and accuracy of lmms-eval 0.7.3 (task longvideobench_val_v); departure: no answer is wrong, not drawn at random"
    patterns: ClassVar[tuple[str, ...]] = (
        "lvb_val.json",
        "validation*.parquet",
        "**/lvb_val.json",
        "**/validation*.parquet",
    )
    subtitles = False

    def read(self) -> list[Sample]:
        """All samples; with subtitles, some video must have them."""
        self._has_subtitles = False
        samples = super().read()
        if self.subtitles and not self._has_subtitles:
            raise ValueError(
                f"no video has subtitles below {self.root / 'subtitles'}: add them, or use {LongVideoBench.name}."
            )
        return samples

    def sample(self, row: Row) -> Sample:
        """Return a question with two to five options."""
        options, lines = choices_of(_options(row), keep_letters=False)
        question = "\n".join([row.text("question"), *lines])
        if self.subtitles:
            question = "\n".join([*self._subtitles(row), question])
        video = row.text("video_path")
        return Sample(
            row.text("id"),
            Clip(self.copy.video(video, ["videos", "."])),
            f"{question}\nAnswer with the option's letter from the given choices directly.\n",
            None,
            options,
            {name: row.text(name) for name in self.breakdown},
            video,
        )

    def answer(self, row: Row, options: dict[str, str]) -> str | None:
        """By its index; -1 where it is withheld."""
        index = row.get("correct_choice")
        return None if index is None or str(index) in ("", "-1") else index_letter(index, options)

    def _subtitles(self, row: Row) -> list[str]:
        file = self.copy.file(row.text("subtitle_path"), "subtitles")
        if file is None:
            return ["No subtitles available"]
        self._has_subtitles = True
        entries = read_json(file)
        try:
            return [str(entry.get("text", entry.get("line", ""))).strip() for entry in entries]
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error}): copy or download it again.") from error


class LongVideoBenchWithSubtitles(LongVideoBench):
    """The validation set with the subtitles above the question."""

    name = "longvideobench_w_subtitle"
    subtitles = True
    protocol = (
        "accuracy of lmms-eval 0.7.3; departure from its longvideobench_val_i: the subtitles stand above the question in one piece, not between the "
        "frames, since the video is one part of the prompt"
    )


class LongVideoBenchTest(LongVideoBench):
    """The test set, whose answers are withheld: what is written is a submission.

    Layout: `lvb_test_wo_gt.json` or `test-*.parquet`.
    """

    name = "longvideobench_test"
    patterns: ClassVar[tuple[str, ...]] = (
        "lvb_test_wo_gt.json",
        "test-*.parquet",
        "**/lvb_test_wo_gt.json",
        "**/test-*.parquet",
    )


def _options(row: Row) -> Any:
    """Return the options; the places behind the last one of a table are empty or `N/A`."""
    options = row.field("candidates") if "candidates" in row.values else [row.get(f"option{i}") for i in range(5)]
    if not isinstance(options, list):
        return options
    while options and (is_missing(options[-1]) or options[-1] in ("", "N/A")):
        options.pop()
    return options
