"""LongVideoBench (arXiv 2407.15754), in the layout of its authors, asked as lmms-eval 0.7.3 does."""

import json
from pathlib import Path
from typing import Any, ClassVar

from .base import Clip, FileBenchmark, Sample, lettered


class LongVideoBench(FileBenchmark):
    """The validation set: 1,337 questions with two to five options, on videos of 8 seconds to an hour.

    Layout: `lvb_val.json` (`id`, `video_path`, `question`, `candidates`, `correct_choice`, `duration_group`, `question_category`, `subtitle_path`,
    `starting_timestamp_for_subtitles`) or `validation-*.parquet` (`option0` to `option4`, `"N/A"` where there is none), `videos/`, `subtitles/`.
    """

    name = "longvideobench"
    breakdown = ("duration_group", "question_category")
    max_new_tokens = 32
    protocol = "prompt and accuracy of lmms-eval 0.7.3 (task longvideobench_val_v); departure: no answer is wrong, not drawn at random"
    patterns: ClassVar[tuple[str, ...]] = ("lvb_val.json", "validation*.parquet", "**/validation*.parquet")
    subtitles = False

    def read(self) -> list[Sample]:
        """One sample a row."""
        path = self.file(*self.patterns)
        samples = []
        for row in self.rows(path):
            options = _options(row)
            question = "\n".join(
                [self.field(row, "question", path), *lettered(options, lambda letter, option: f"{letter}. {option}")]
            )
            if self.subtitles:
                question = "\n".join([*self._subtitles(row, path), question])
            correct = row.get("correct_choice")
            video = str(self.field(row, "video_path", path))
            samples.append(
                Sample(
                    str(self.field(row, "id", path)),
                    Clip(self.video(video, "videos", ".")),
                    f"{question}\nAnswer with the option's letter from the given choices directly.\n",
                    None if correct is None or int(correct) < 0 else "ABCDE"[int(correct)],
                    options,
                    {name: str(self.field(row, name, path)) for name in self.breakdown},
                    video,
                )
            )
        return samples

    def _subtitles(self, row: dict[str, Any], path: Path) -> list[str]:
        file = self.root / "subtitles" / str(self.field(row, "subtitle_path", path))
        if not file.is_file():
            return ["No subtitles available"]
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
            return [str(entry.get("text", entry.get("line", ""))).strip() for entry in entries]
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{self.name}: {file} cannot be read ({error}): copy or download it again.") from error


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
    patterns: ClassVar[tuple[str, ...]] = ("lvb_test_wo_gt.json", "test-*.parquet", "**/test-*.parquet")


def _options(row: dict[str, Any]) -> tuple[str, ...]:
    if "candidates" in row:
        return tuple(str(candidate) for candidate in row["candidates"])
    options = [row.get(f"option{i}") for i in range(5)]
    return tuple(str(option) for option in options if option is not None and option != "N/A")
