"""Samples to train the policy on: a fresh clip and one question about it, from a stream of seeds that no test draws from."""

from typing import Any

import numpy as np

from .synthetic import QUESTION_KINDS, make_clip

_POLICY_STREAM = 5


class QuestionDataset:
    """`num_samples` clips with a question each, the kinds of question in turn; rendered when asked for.

    Args:
        num_samples: length.
        seed: of the clips and questions.
    """

    def __init__(self, num_samples: int, seed: int = 0):
        self.num_samples, self.seed = num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`video` uint8 `(T, H, W, 3)`, `problem`, `solution` and `problem_type`."""
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        clip = make_clip((_POLICY_STREAM, self.seed, index))
        kind = QUESTION_KINDS[index % len(QUESTION_KINDS)]
        choices = [question for question in clip.questions if question.kind == kind]
        question = choices[np.random.default_rng((_POLICY_STREAM, self.seed, index, 1)).integers(len(choices))]
        return {
            "video": clip.frames,
            "problem": question.text,
            "solution": question.answer,
            "problem_type": "multiple choice",
        }
