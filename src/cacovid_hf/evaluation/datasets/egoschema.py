"""EgoSchema (arXiv 2308.09126): the 500 questions with public answers, and the full set for submission."""

from pathlib import Path
from typing import Any, ClassVar

from ...utils.options import index_letter
from .base import Clip, FileBenchmark, Sample, choices_of
from .tables import Row, read_json

_INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."


class EgoSchema(FileBenchmark):
    """500 questions with five options, each on three minutes of video.

    Layouts: `Subset/test-*.parquet` (`question_idx`, `question`, `video_idx`, `option` as `A. ...`, `answer` as an index); or, of its authors, `questions.json` (`q_uid`,
    `question`, `option 0` to `option 4`) with `subset_answers.json`. Videos in `videos/`.
    """

    name = "egoschema"
    protocol = "prompt and accuracy of lmms-eval 0.7.3 (task egoschema_subset); departure: no answer is wrong, not drawn at random"
    patterns: ClassVar[tuple[str, ...]] = (
        "Subset/*.parquet",
        "**/Subset/*.parquet",
        "**/Subset/data/*.parquet",
        "**/questions.json",
    )
    subset = True

    def __init__(self, root: Path, limit: int | None = None):
        self._known: dict[Path, dict[str, Any]] = {}
        super().__init__(root, limit)

    def sample(self, row: Row) -> Sample | None:
        """Return a question with five options; None where no answer is known and one is needed."""
        if _is_of_authors(row):
            video = id = row.text("q_uid")
            options, lines = choices_of([row.text(f"option {i}") for i in range(5)])
            if self.subset and video not in self._answers(row.path):
                return None
        else:
            video = row.text("video_idx")
            id = str(row.number - 1) if row.get("question_idx") is None else row.text("question_idx")
            options, lines = choices_of(row.field("option"))
        prompt = "\n".join([row.text("question"), *lines]) + _INSTRUCTION
        return Sample(id, Clip(self.copy.video(video, ["videos", "."])), prompt, None, options, {}, video)

    def answer(self, row: Row, options: dict[str, str]) -> str | None:
        """By its index."""
        index = self._answers(row.path).get(row.text("q_uid")) if _is_of_authors(row) else row.get("answer")
        return None if index is None else index_letter(index, options)

    def _answers(self, path: Path) -> dict[str, Any]:
        if path not in self._known:
            self._known[path] = self._read_answers(path)
        return self._known[path]

    def _read_answers(self, path: Path) -> dict[str, Any]:
        file = self.copy.file("subset_answers.json", str(path.parent.relative_to(self.root)), ".")
        if file is None:
            if self.subset:
                file = path.with_name("subset_answers.json")
                raise ValueError(f"{file} is missing, so that no answer is known: add it, or use {EgoSchemaFull.name}.")
            return {}
        answers = read_json(file)
        if not isinstance(answers, dict):
            raise ValueError(f"{file} is not an object of answers by q_uid: copy or download it again.")
        return answers


class EgoSchemaFull(EgoSchema):
    """All 5,031 questions; the answers are withheld, so that a submission (video to index of the option) is written."""

    name = "egoschema_full"
    patterns: ClassVar[tuple[str, ...]] = (
        "GENERATION/*.parquet",
        "**/GENERATION/*.parquet",
        "MC/*.parquet",
        "**/questions.json",
    )
    subset = False

    def submission(self, answers: dict[str, str]) -> dict[str, int]:
        """From video to index, -1 where there was no answer."""
        videos = {sample.id: sample.video_id for sample in self.samples}
        return {videos[id]: "ABCDE".find(letter) if letter else -1 for id, letter in answers.items()}


def _is_of_authors(row: Row) -> bool:
    return "q_uid" in row.values or row.path.suffix.lower() == ".json"
