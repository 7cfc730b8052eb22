"""MLVU, multiple choice (arXiv 2406.04264): dev and test, in the layout of its authors and in that of lmms-eval 0.7.3."""

from pathlib import Path
from typing import Any, ClassVar

from .base import Clip, FileBenchmark, Sample, lettered, without_labels


class MLVUDev(FileBenchmark):
    """Seven kinds of questions on long videos; the metric is the mean over the kinds.

    Layouts: `json/1_plotQA.json` to `7_topic_reasoning.json` (`video`, `question`, `candidates`, `answer`, `question_type`) and `video/1_plotQA/<video>` (also below
    `MLVU/`); or a `.parquet` file with `video_name`, `question` (options included), `candidates`, `answer` (a letter) and `task_type`, the
    videos below the root. The two generation tasks (`8_sub_scene`, `9_summary`) are no multiple choice and are left out.
    """

    name = "mlvu_dev"
    metric = "mean accuracy over task types"
    macro_group = "task_type"
    breakdown = ("task_type",)
    protocol = "prompt and mean over task types of lmms-eval 0.7.3 (task mlvu_dev)"
    instruction = "\nOnly give the best option.\nBest option: ("
    patterns: ClassVar[tuple[str, ...]] = (
        "json/[1-7]_*.json",
        "MLVU/json/[1-7]_*.json",
        "**/test*.parquet",
        "**/*.parquet",
    )

    def read(self) -> list[Sample]:
        """One sample a row."""
        samples = []
        for path in self.files(*self.patterns):
            for number, row in enumerate(self.rows(path)):
                samples.append(self._sample(path, number, row))
        return samples

    def _sample(self, path: Path, number: int, row: dict[str, Any]) -> Sample:
        published = path.suffix == ".json"
        video = str(self.field(row, "video" if published else "video_name", path))
        kind = str(self.field(row, "question_type" if published else "task_type", path))
        question = str(self.field(row, "question", path))
        candidates = row.get("candidates")
        if published and not candidates:
            raise ValueError(f"{self.name}: {path} has a question without candidates: it is of another version.")
        if candidates:
            options = tuple(str(candidate) for candidate in candidates)
        else:
            options = without_labels([line for line in question.split("\n")[1:] if line.lstrip().startswith("(")])
        lines = lettered(options, lambda letter, option: f"({letter}) {option}")
        if lines[0] not in question:
            question = "\n".join([question, *lines])
        answer = row.get("answer")
        if answer is not None and str(answer) in options:
            answer = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[options.index(str(answer))]
        folder = Path(path.parent.parent, "video", path.stem).relative_to(self.root) if published else Path()
        return Sample(
            str(row.get("question_id") or f"{path.stem}-{number}"),
            Clip(self.video(video, str(folder), f"{folder.parent}", "video", ".")),
            question + self.instruction,
            None if answer is None else str(answer).strip().strip("()").upper(),
            options,
            {"task_type": kind},
            video,
        )


class MLVUTest(MLVUDev):
    """Nine kinds of questions with six options; the answers are None where the copy withholds them.

    Layouts: `test_mcq_gt.json`, `test-ground-truth/test_mcq_gt.json` or `test_multi_choice_tasks.json` with `question_id`, and `video/<video>`; or a `.parquet` file as of the dev set.
    """

    name = "mlvu_test"
    protocol = (
        "mean over task types of lmms-eval 0.7.3 (task mlvu_test); departures: the prompt of the dev set instead of the bare question, and all "
        "six letters count, where lmms-eval looks for A to D alone"
    )
    patterns: ClassVar[tuple[str, ...]] = (
        "**/test_mcq_gt.json",
        "**/test_multi_choice_tasks.json",
        "**/test*.parquet",
        "**/*.parquet",
    )
