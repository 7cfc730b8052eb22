"""Clips as tokens, and everything that is asked about them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cacovid_hf.tiny.synthetic import GRID, NUM_FRAMES, make_clip
from studies.laboratory.video_model import video_tokens
from studies.laboratory.words import Vocabulary

NUM_TOKENS = NUM_FRAMES * GRID * GRID
KINDS = ("color", "shape", "scene_of_shape", "digit", "scene_of_digit")  # one token shows the answer
# Streams of seeds: of the reader's training, of the policies' training, of choices, of what is reported.
READING, TRAINING, VALIDATION, REPORTED = 31, 32, 33, 34
_CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class Asked:
    """Clips, and `Q` questions about each.

    Attributes:
        tokens: half precision `(C, N, D)`, as they enter the language model.
        ids: int64 `(C, Q, M)`, the questions, padded on the right.
        lengths: int64 `(C, Q)`.
        answers: int64 `(C, Q)`, one token each.
        kinds: int64 `(C, Q)`, numbers in `KINDS`.
        evidence: bool `(C, Q, N)`, the tokens any one of which shows the answer.
        objects: bool `(C, N)`, the tokens that show a shape or a digit.
        digits: bool `(C, N)`, those that show a digit.
    """

    tokens: Tensor
    ids: Tensor
    lengths: Tensor
    answers: Tensor
    kinds: Tensor
    evidence: Tensor
    objects: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, clips: Tensor) -> "Asked":
        """Some clips, by number; one may come several times."""
        return Asked(**{name: value[clips] for name, value in vars(self).items()})

    def alone(self, numbers: Tensor) -> "Asked":
        """Some questions, by number in the order of the clips, each with a clip of its own."""
        clips, places = numbers // self.answers.shape[1], numbers % self.answers.shape[1]
        return self.of(clips).chosen(places[:, None])

    def chosen(self, picks: Tensor) -> "Asked":
        """Some questions of every clip, by number `(C, Q')`."""

        def taken(values: Tensor) -> Tensor:
            index = picks if values.ndim == 2 else picks[..., None].expand(-1, -1, values.shape[2])
            return values.gather(1, index)

        parts = (self.ids, self.lengths, self.answers, self.kinds, self.evidence)
        return Asked(self.tokens, *map(taken, parts), self.objects, self.digits)


def ask(model: Any, vocabulary: Vocabulary, count: int, stream: int, seed: int) -> Asked:
    """All questions of `KINDS` about the first `count` clips of a stream: 32 a clip, in the same order of kinds.

    Args:
        model: its tower and projector make the tokens.
        vocabulary: SmolLM2's.
        count: of clips.
        stream: one of the streams above.
        seed: of the clips.
    """
    clips = [make_clip((stream, seed, number)) for number in range(count)]
    tokens = [
        video_tokens(model, [clip.frames for clip in clips[start : start + _CLIPS_AT_ONCE]]).half()
        for start in range(0, count, _CLIPS_AT_ONCE)
    ]
    questions = [[question for question in clip.questions if question.kind in KINDS] for clip in clips]
    ids = [[vocabulary.question(question.text) for question in some] for some in questions]
    lengths = torch.tensor([[len(one) for one in some] for some in ids])
    padded = torch.zeros(*lengths.shape, int(lengths.max()), dtype=torch.long)
    for clip, some in enumerate(ids):
        for number, one in enumerate(some):
            padded[clip, number, : len(one)] = torch.tensor(one)
    kinds = torch.tensor([[KINDS.index(question.kind) for question in some] for some in questions])
    about_digit = kinds[0] == KINDS.index("digit")  # the same for every clip
    evidence = np.stack([[question.evidence.ravel() for question in some] for some in questions])
    return Asked(
        tokens=torch.cat(tokens),
        ids=padded,
        lengths=lengths,
        answers=torch.tensor([[vocabulary.answer(question.answer) for question in some] for some in questions]),
        kinds=kinds,
        evidence=torch.from_numpy(evidence),
        objects=torch.from_numpy(evidence.any(1)),
        digits=torch.from_numpy(evidence[:, about_digit.numpy()].any(1)),
    )


def balanced(asked: Asked, per_kind: int, generator: torch.Generator) -> Asked:
    """The same number of questions of every kind about each clip, drawn at random."""
    order = torch.rand(asked.kinds.shape, generator=generator)
    picks = [order.masked_fill(asked.kinds != kind, -1).topk(per_kind, dim=1).indices for kind in range(len(KINDS))]
    return asked.chosen(torch.cat(picks, dim=1))
