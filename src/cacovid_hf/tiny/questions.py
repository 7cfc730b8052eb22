"""Test questions embedded once, to be answered from many different subsets of their tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from ..modeling import CaCoVidForConditionalGeneration
from ..prompt import Prompt, stack_prompts
from ..training.data import AnswerCollator
from ..training.rollouts import score_answers
from .accuracy import round_trip
from .synthetic import sample_questions


@dataclass(frozen=True)
class EmbeddedQuestions:
    """A batch of questions about a clip each.

    Attributes:
        prompt: as the language model would receive them.
        answers: one int64 `(A,)` a question.
        evidence: bool `(B, N)`, the tokens that show the answer.
        kinds: the kind of each question.
    """

    prompt: Prompt
    answers: list[Tensor]
    evidence: Tensor
    kinds: list[str]


def embed_questions(
    model: CaCoVidForConditionalGeneration,
    processor: ProcessorMixin,
    num_questions: int,
    seed: int,
    *,
    through_mp4: bool = False,
    batch_size: int = 50,
) -> list[EmbeddedQuestions]:
    """Embed `num_questions` test questions of a seed, balanced by kind; about 150 kB each in float32.

    Args:
        model: a tiny model.
        processor: its processor.
        num_questions: at least 1.
        seed: of the clips and questions; no seed yields what was trained on.
        through_mp4: write every clip as an H.264 file first and read it back.
        batch_size: questions embedded at once.
    """
    collate = AnswerCollator(processor)
    pairs = list(sample_questions(num_questions, seed))
    batches = []
    for start in range(0, num_questions, batch_size):
        part = pairs[start : start + batch_size]
        samples = [
            {
                "video": round_trip(clip.frames) if through_mp4 else clip.frames,
                "problem": question.text,
                "solution": question.answer,
            }
            for clip, question in part
        ]
        batch: dict[str, Any] = collate(samples)
        with torch.no_grad():
            prompt = stack_prompts([model.embed(**inputs) for inputs in batch["inputs"]])
        evidence = torch.from_numpy(np.stack([question.evidence for _, question in part])).flatten(1)
        answers = [question.answer for question in batch["questions"]]
        batches.append(EmbeddedQuestions(prompt, answers, evidence, [question.kind for _, question in part]))
    return batches


@torch.no_grad()
def answered_right(
    model: CaCoVidForConditionalGeneration,
    batches: list[EmbeddedQuestions],
    retention_ratio: float,
    compressor: Any = None,
) -> Tensor:
    """Which questions greedy generation answers right from the tokens that a method keeps: bool `(num_questions,)`."""
    right = []
    for batch in batches:
        compressed = model.compress_prompt(batch.prompt, retention_ratio=retention_ratio, compressor=compressor)
        right.append(score_answers(model.backbone, compressed, batch.answers).exact)
    return torch.cat(right)
