"""EgoSchema (arXiv 2308.09126): the 500 questions with public answers, and the full set for submission."""

import json
from pathlib import Path
from typing import Any, ClassVar

from .base import Clip, FileBenchmark, Sample, without_labels

_INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."


class EgoSchema(FileBenchmark):
    """500 questions with five options, each on three minutes of video.

    Layouts: `Subset/test-*.parquet` (`question_idx`, `question`, `video_idx`, `option` as `A. ...`, `answer` as an index); or, of its authors, `questions.json` (`q_uid`,
    `question`, `option 0` to `option 4`) with `subset_answers.json`. Videos in `videos/`.
    """

    name = "egoschema"
    protocol = "prompt and accuracy of lmms-eval 0.7.3 (task egoschema_subset); departure: no answer is wrong, not drawn at random"
    patterns: ClassVar[tuple[str, ...]] = ("Subset/*.parquet", "**/Subset/*.parquet", "**/questions.json")
    subset = True

    def read(self) -> list[Sample]:
        """One sample a row."""
        path = self.file(*self.patterns)
        answers = self._answers(path)
        samples = []
        for number, row in enumerate(self.rows(path)):
            if path.suffix == ".json":
                video = str(self.field(row, "q_uid", path))
                id = video
                texts = [str(self.field(row, f"option {i}", path)) for i in range(5)]
                options = [f"{letter}. {text}" for letter, text in zip("ABCDE", texts, strict=True)]
                answer = answers.get(video)
                if self.subset and answer is None:
                    continue
            else:
                video = str(self.field(row, "video_idx", path))
                id = str(row.get("question_idx", number))
                options = [str(option) for option in self.field(row, "option", path)]
                answer = row.get("answer")
            samples.append(
                Sample(
                    id,
                    Clip(self.video(video, "videos", ".")),
                    "\n".join([str(self.field(row, "question", path)), *options]) + _INSTRUCTION,
                    None if answer is None else "ABCDE"[int(answer)],
                    without_labels(options),
                    {},
                    video,
                )
            )
        return samples

    def _answers(self, path: Path) -> dict[str, Any]:
        if path.suffix != ".json":
            return {}
        file = path.with_name("subset_answers.json")
        if not file.is_file():
            if self.subset:
                raise ValueError(
                    f"{self.name}: {file} is missing, so that no answer is known: add it, or use {EgoSchemaFull.name}."
                )
            return {}
        return json.loads(file.read_text(encoding="utf-8"))


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
