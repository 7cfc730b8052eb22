"""The accuracy of a model on fresh questions about fresh clips, measured as a user would ask them."""

import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..utils.chat import chat_inputs, user_message
from ..video.files import read_video
from .mp4 import write_mp4
from .synthetic import NUM_FRAMES, sample_questions


@dataclass(frozen=True)
class Accuracy:
    """How many of `total` questions were answered right, in all and by question kind (fractions)."""

    correct: int
    total: int
    by_kind: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Fraction of right answers, in [0, 1]."""
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Standard error of `accuracy` (binomial), in the same unit."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)


def answer_accuracy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    num_questions: int = 500,
    seed: int = 0,
    retention_ratio: float | None = None,
    compressor: Any = None,
    through_mp4: bool = False,
    batch_size: int = 50,
    progress: str | None = None,
) -> Accuracy:
    """Ask `num_questions` questions, balanced by kind, each about a clip of its own, and count the right first words.

    Args:
        model: the stock model, or a wrapped one.
        processor: its processor; it is given decoded frames through the chat template.
        num_questions: at least 1.
        seed: of the clips and questions; no seed yields what the model was trained on.
        retention_ratio: handed to `model.generate`, fraction of the video tokens kept; None: not handed on at all.
        compressor: likewise, the method's name or an instance.
        through_mp4: write every clip as an H.264 file first and read it back, as if it were a user's.
        batch_size: questions answered in one call of `model.generate`.
        progress: what a bar on stderr is to say while it counts questions, if that is a terminal; None: no bar.

    Raises:
        ValueError: `num_questions` is less than 1.
    """
    if num_questions < 1:
        raise ValueError(f"num_questions is {num_questions}: no accuracy without a question. Ask at least 1.")
    asked_for = {"retention_ratio": retention_ratio, "compressor": compressor}
    options = {name: value for name, value in asked_for.items() if value is not None}
    pairs = sample_questions(num_questions, seed)
    asked: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    hidden = None if progress else True  # None: where stderr is no terminal
    with tqdm(total=num_questions, desc=progress, leave=False, mininterval=0, disable=hidden) as bar:
        for start in range(0, num_questions, batch_size):
            batch = [next(pairs) for _ in range(min(batch_size, num_questions - start))]
            videos = [round_trip(clip.frames) if through_mp4 else clip.frames for clip, _ in batch]
            answers = first_words(model, processor, videos, [question.text for _, question in batch], **options)
            for (_, question), answer in zip(batch, answers, strict=True):
                asked[question.kind] += 1
                correct[question.kind] += answer == question.answer
            bar.update(len(batch))
    return Accuracy(sum(correct.values()), num_questions, {kind: correct[kind] / asked[kind] for kind in asked})


def first_words(
    model: PreTrainedModel, processor: ProcessorMixin, videos: list[np.ndarray], questions: list[str], **options: Any
) -> list[str]:
    """Return the first word that the model answers to each question about its video, uint8 `(T, H, W, 3)`, as one batch.

    `options` go to `model.generate`.
    """
    chats = [[user_message(question, video)] for video, question in zip(videos, questions, strict=True)]
    inputs = chat_inputs(processor, chats)
    generate: Any = model.generate
    sequences = generate(**inputs.to(model.device), max_new_tokens=1, do_sample=False, **options)  # (B, L + 1)
    return processor.tokenizer.convert_ids_to_tokens(sequences[:, -1])


def round_trip(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 `(T, H, W, 3)` written as an H.264 file and read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_mp4(path, frames)
        return read_video(path, num_frames=NUM_FRAMES)[0]
