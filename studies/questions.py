"""Test questions embedded once, to be answered from many different subsets of their tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.prompt import Prompt, stack_prompts
from cacovid_hf.tiny.accuracy import round_trip
from cacovid_hf.tiny.synthetic import sample_questions
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.training.question import Question
from cacovid_hf.training.rollouts import score_answers


@dataclass(frozen=True)
class EmbeddedQuestions:
    """A batch of questions about a clip each.

    Attributes:
        prompt: `B` prompts as the language model would receive them.
        questions: one per prompt, with the right answer.
        evidence: bool `(B, N)`, the tokens that show the answer; `(B, 0)` of questions to train on.
        kinds: the kind of each question; `""` of questions to train on.
    """

    prompt: Prompt
    questions: list[Question]
    evidence: Tensor
    kinds: list[str]

    @property
    def answers(self) -> list[Any]:
        """The right answers, int64 `(A,)` each."""
        return [question.answer for question in self.questions]


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
    samples = [
        {
            "video": round_trip(clip.frames) if through_mp4 else clip.frames,
            "problem": question.text,
            "solution": question.answer,
            "kind": question.kind,
            "evidence": question.evidence,
        }
        for clip, question in sample_questions(num_questions, seed)
    ]
    return embed_samples(model, processor, samples, batch_size)


@torch.no_grad()
def embed_samples(
    model: CaCoVidForConditionalGeneration, processor: ProcessorMixin, samples: list[dict[str, Any]], batch_size: int
) -> list[EmbeddedQuestions]:
    """Embed samples of `AnswerCollator`, which may have a `kind` and `evidence`, in batches."""
    collate = AnswerCollator(processor)
    batches = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        batch: dict[str, Any] = collate(part)
        prompt = stack_prompts([model.embed(**inputs) for inputs in batch["inputs"]])
        evidence = [np.asarray(sample.get("evidence", ()), dtype=bool).ravel() for sample in part]
        kinds = [sample.get("kind", "") for sample in part]
        batches.append(EmbeddedQuestions(prompt, batch["questions"], torch.from_numpy(np.stack(evidence)), kinds))
    return batches


@torch.no_grad()
def answered_right(
    model: CaCoVidForConditionalGeneration,
    batches: list[EmbeddedQuestions],
    retention_ratio: float,
    compressor: Any = None,
) -> Tensor:
    """Which questions greedy generation answers right from the tokens that a method keeps, also inside the language model: bool `(num_questions,)`."""
    method, right = model.resolve_compressor(compressor), []
    for batch in batches:
        compressed = model.compress_prompt(batch.prompt, retention_ratio=retention_ratio, compressor=method)
        with method.inside(model, compressed, [retention_ratio] * len(compressed.videos)):
            right.append(score_answers(model.backbone, compressed, batch.answers).exact)
    return torch.cat(right)
