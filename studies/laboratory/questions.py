"""Clips as tokens, and everything that is asked about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cacovid_hf.tiny.synthetic import GRID, NUM_FRAMES, Clip, Question, make_clip
from studies.laboratory.hard_clips import HARD_KINDS, HardQuestion
from studies.laboratory.video_model import video_tokens
from studies.laboratory.words import Vocabulary

NUM_TOKENS = NUM_FRAMES * GRID * GRID
KINDS = ("color", "shape", "scene_of_shape", "digit", "scene_of_digit")  # one token shows the answer
ALL_KINDS = KINDS + HARD_KINDS
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
        kinds: int64 `(C, Q)`, numbers in `ALL_KINDS`.
        groups: int8 `(C, Q, N)`, 0 or the number of a group from 1 on. The answer needs a token of every group, whichever of it; see `HardQuestion`.
        objects: bool `(C, N)`, the tokens that show a shape or a digit.
        digits: bool `(C, N)`, those that show a digit.
    """

    tokens: Tensor
    ids: Tensor
    lengths: Tensor
    answers: Tensor
    kinds: Tensor
    groups: Tensor
    objects: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def evidence(self) -> Tensor:
        """Tokens that show the answer, any one of them, or a part of it where there are several groups: bool `(C, Q, N)`."""
        return self.groups > 0

    def found(self, keep: Tensor) -> Tensor:
        """Share of a question's groups that have a token in `keep`, bool `(C, Q, N)`: `(C, Q)`, NaN where nothing is needed."""
        needed = self.groups.amax(2)
        hits = torch.zeros(needed.shape)
        for number in range(1, int(needed.max()) + 1):
            hits += ((self.groups == number) & keep).any(2)
        return hits / needed

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

        parts = (self.ids, self.lengths, self.answers, self.kinds, self.groups)
        return Asked(self.tokens, *map(taken, parts), self.objects, self.digits)


def clips_of(count: int, stream: int, seed: int, make: Callable[[Sequence[int]], Clip] = make_clip) -> list[Clip]:
    """The first `count` clips of a stream, `make` each from its seeds."""
    return [make((stream, seed, number)) for number in range(count)]


def ask(
    model: Any,
    vocabulary: Vocabulary,
    count: int,
    stream: int,
    seed: int,
    make: Callable[[Sequence[int]], Clip] = make_clip,
    kinds: Sequence[str] = KINDS,
) -> Asked:
    """All questions of some kinds about the first `count` clips of a stream, in the same order of kinds for every clip: 32 about one of `make_clip`.

    Args:
        model: its tower and projector make the tokens.
        vocabulary: SmolLM2's.
        count: of clips.
        stream: one of the streams above.
        seed: of the clips.
        make: a clip from its seeds.
        kinds: of `ALL_KINDS`; `order` of `make_clip` is another one than that of `make_hard_clip`.
    """
    clips = clips_of(count, stream, seed, make)
    tokens = [
        video_tokens(model, [clip.frames for clip in clips[start : start + _CLIPS_AT_ONCE]]).half()
        for start in range(0, count, _CLIPS_AT_ONCE)
    ]
    questions = [[question for question in clip.questions if question.kind in kinds] for clip in clips]
    ids = [[vocabulary.question(question.text) for question in some] for some in questions]
    lengths = torch.tensor([[len(one) for one in some] for some in ids])
    padded = torch.zeros(*lengths.shape, int(lengths.max()), dtype=torch.long)
    for clip, some in enumerate(ids):
        for number, one in enumerate(some):
            padded[clip, number, : len(one)] = torch.tensor(one)
    numbers = torch.tensor([[ALL_KINDS.index(question.kind) for question in some] for some in questions])
    about_digit = numbers[0] == KINDS.index("digit")  # the same for every clip
    groups = np.stack([[_groups(question) for question in some] for some in questions])
    return Asked(
        tokens=torch.cat(tokens),
        ids=padded,
        lengths=lengths,
        answers=torch.tensor([[vocabulary.answer(question.answer) for question in some] for some in questions]),
        kinds=numbers,
        groups=torch.from_numpy(groups),
        objects=torch.from_numpy(groups.any(1)),
        digits=torch.from_numpy(groups[:, about_digit.numpy()].any(1)),
    )


def _groups(question: Question) -> np.ndarray:
    return (question.groups if isinstance(question, HardQuestion) else question.evidence).ravel().astype(np.int8)


def balanced(asked: Asked, per_kind: int, generator: torch.Generator, kinds: Sequence[str] = KINDS) -> Asked:
    """The same number of questions of every kind about each clip, drawn at random."""
    order = torch.rand(asked.kinds.shape, generator=generator)
    wanted = [ALL_KINDS.index(kind) for kind in kinds]
    picks = [order.masked_fill(asked.kinds != kind, -1).topk(per_kind, dim=1).indices for kind in wanted]
    return asked.chosen(torch.cat(picks, dim=1))
