"""The embedded model's own benchmark: fresh synthetic questions, balanced by kind, each about a clip of its own."""

from typing import Any

from ...tiny.accuracy import round_trip
from ...tiny.synthetic import sample_question
from .base import Benchmark, Sample


class Tiny(Benchmark):
    """Synthetic questions about rendered clips; the answer is one word.

    Args:
        num_questions: at least 1.
        seed: of the clips and questions; no seed yields what a model was trained on.
        through_mp4: write every clip as an H.264 file first and read it back, as if it were a user's.
    """

    name = "tiny"
    breakdown = ("kind",)
    max_new_tokens = 1
    protocol = "ours: the right first word"

    def __init__(self, num_questions: int = 1000, seed: int = 0, through_mp4: bool = False):
        if num_questions < 1:
            raise ValueError(f"{self.name}: {num_questions} questions: ask at least 1.")
        self.num_questions, self.seed, self.through_mp4 = num_questions, seed, through_mp4

    def __len__(self) -> int:
        return self.num_questions

    def __getitem__(self, index: int) -> Sample:
        """Render the clip."""
        if not 0 <= index < self.num_questions:
            raise IndexError(index)
        clip, question = sample_question(index, self.seed)
        frames = round_trip(clip.frames) if self.through_mp4 else clip.frames
        return Sample(f"{self.seed}-{index}", frames, question.text, question.answer, (), {"kind": question.kind})

    @property
    def settings(self) -> dict[str, Any]:
        """All of them."""
        return {"num_questions": self.num_questions, "seed": self.seed, "through_mp4": self.through_mp4}

    def extract(self, response: str, sample: Sample) -> str:
        """Return the first word, in lower case."""
        return next(iter(response.lower().split()), "").strip(".,!?")
