"""A reader learns the kinds of `hard_clips` beside the old ones: trained further from one that reads the old kinds.

What is other than in `reading`: it takes a fixed number of steps, since a kind may never be learnt. Its tokens grow by the step, not by mastery, and start
at 2 to 8. Two questions of each clip, of weak kinds more often, bring their evidence into those tokens. Every kind has the same weight, however many
questions it has. The rate falls over the last 40 % of the steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from studies.laboratory.packing import everything
from studies.laboratory.questions import ALL_KINDS, NUM_TOKENS, Asked
from studies.laboratory.reading import LEARNING_RATE, SHARES, SUBSETS, WARM_UP, Progress, Reader

STEPS = 450
LEVELS = (
    (0.2, (2, 8)),
    (0.35, (4, 14)),
    (0.5, (8, 30)),
    (0.6, (16, 80)),
)  # share of the steps up to which so many tokens stand there
FALLING = 0.4
KEEP_EVERY = 50  # steps


class HardReader(Reader):
    """Trains a reader on questions of which some need several tokens and some need none; arguments as of `Reader`."""

    def __init__(self, model: object, asked: Asked, validation: Asked, seed: int):
        super().__init__(model, asked, validation, seed)
        self.progress = Progress(by_kind=torch.zeros(len(ALL_KINDS)))
        self.share = torch.stack([(asked.kinds == kind).float().mean() for kind in range(len(ALL_KINDS))])

    def run(self, keep: Callable[[], None]) -> None:
        """Take the steps that are left.

        Args:
            keep: called after every `KEEP_EVERY` steps, to save what has been learnt so far.
        """
        while self.progress.step < STEPS:
            self._step()
            if self.progress.step % KEEP_EVERY == 0:
                keep()

    def _rate(self) -> float:
        done = self.progress.step / STEPS
        return LEARNING_RATE * min(1.0, (self.progress.step + 1) / WARM_UP, (1 - done) / FALLING)

    def _size(self) -> int:
        for until, (low, high) in LEVELS:
            if self.progress.step < until * STEPS:
                return int(torch.randint(low, high + 1, (), generator=self.generator))
        return SUBSETS[int(torch.multinomial(torch.tensor(SHARES), 1, generator=self.generator))]

    def _kept(self, clips: Tensor, size: int) -> Tensor:
        """Some tokens of each clip, the evidence of two questions and up to 16 objects among them: int64 `(B, size)`, ascending."""
        if size == NUM_TOKENS:
            return everything(len(clips))
        aimed = torch.multinomial(self._weights(clips), 2, generator=self.generator)
        wanted = self.asked.of(clips).chosen(aimed).evidence.any(1)
        order = torch.rand(len(clips), NUM_TOKENS, generator=self.generator)
        share = 0.3 + 0.7 * float(torch.rand((), generator=self.generator))
        liked = order + 4 * wanted + 2 * self.asked.objects[clips]
        first = liked.topk(max(1, int(min(size, 16) * share)), dim=1).indices
        return order.scatter_add(1, first, torch.full(first.shape, 9.0)).topk(size, dim=1).indices.sort(1).values

    def _questions(self, clips: Tensor, kept: Tensor, count: int) -> Asked:
        """Questions that the tokens can answer, weak kinds more often; the clips become those of the batch."""
        some = self.asked.of(clips)
        keep = torch.zeros(len(clips), 1, NUM_TOKENS).bool().scatter(2, kept[:, None], True)
        can = some.found(keep).nan_to_num(1.0) == 1  # where nothing is needed, any tokens will do
        picks = torch.multinomial(self._weights(clips) * can + 1e-9, count, replacement=True, generator=self.generator)
        return some.chosen(picks)

    def _weights(self, clips: Tensor) -> Tensor:
        return ((1.15 - self.progress.by_kind) / self.share)[self.asked.kinds[clips]]

    def _note(self, right: Tensor, kinds: Tensor) -> None:
        for kind in kinds.unique().tolist():
            now = right[kinds == kind].float().mean()
            self.progress.by_kind[kind] += 0.08 * (now - self.progress.by_kind[kind])
