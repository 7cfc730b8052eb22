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
        num_pictures: the first so many are about one picture, a frame that shows the answer, as `data_type: image`; none asks for the order of scenes.
    """

    def __init__(self, num_samples: int, seed: int = 0, num_pictures: int = 0):
        self.num_samples, self.seed, self.num_pictures = num_samples, seed, num_pictures

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`video` uint8 `(T, H, W, 3)` or `image` uint8 `(H, W, 3)`, `problem`, `solution`, `problem_type` and `data_type`."""
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        clip = make_clip((_POLICY_STREAM, self.seed, index))
        is_picture = index < self.num_pictures
        kinds = [kind for kind in QUESTION_KINDS if not (is_picture and kind == "order")]
        kind = kinds[index % len(kinds)]
        choices = [question for question in clip.questions if question.kind == kind]
        question = choices[np.random.default_rng((_POLICY_STREAM, self.seed, index, 1)).integers(len(choices))]
        shown: dict[str, Any] = {"video": clip.frames, "data_type": "video"}
        if is_picture:
            shown = {"image": clip.frames[question.evidence.any((1, 2)).argmax()], "data_type": "image"}
        return {
            **shown,
            "problem": question.text,
            "solution": question.answer,
            "problem_type": "multiple choice",
        }
