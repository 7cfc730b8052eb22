"""MLVU, multiple choice (arXiv 2406.04264): dev and test, in the layout of its authors and in that of lmms-eval 0.7.3."""

from typing import ClassVar

from ...utils.option_letters import right_letter
from .base import Clip, FileBenchmark, Sample, choices_of
from .tables import Row


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
        "**/json/[1-7]_*.json",
        "**/test*.parquet",
        "**/*.parquet",
    )

    answer_is = "text"

    def sample(self, row: Row) -> Sample:
        """Return a question with its options."""
        published = row.path.suffix.lower() != ".parquet"
        video = row.text("video" if published else "video_name")
        question, candidates = row.text("question"), row.get("candidates")
        if candidates is None or len(candidates) == 0:
            if published:
                raise ValueError(f"{row.path} has a question without candidates: it is of another version.")
            candidates = [line for line in question.split("\n")[1:] if line.lstrip().startswith("(")]
        options, lines = choices_of(candidates, "({letter}) {text}", keep_letters=False)
        if lines[0] not in question:
            question = "\n".join([question, *lines])
        folders = [f"{folder}video/{row.path.stem}" for folder in ("", "MLVU/")] if published else []
        return Sample(
            row.text("question_id") if row.get("question_id") else f"{row.path.stem}-{row.number - 1}",
            Clip(self.copy.video(video, [*folders, "video", "MLVU/video", "test_video", "."])),
            question + self.instruction,
            None,
            options,
            {"task_type": row.text("question_type" if published else "task_type")},
            video,
        )

    def answer(self, row: Row, options: dict[str, str]) -> str | None:
        """By its text in the authors' layout, by its letter in the other."""
        self_is = self.answer_is if row.path.suffix.lower() != ".parquet" else "letter"
        given = row.get("answer")
        return None if given is None or given == "" else right_letter(given, options, self_is)


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
