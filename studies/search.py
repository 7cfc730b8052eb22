"""The best subset there is, searched for: the upper bound that samplers are compared with, on grids small enough for it.

A beam over subsets, grown by one token at a time; wide enough, it is exhaustive. Not for training: a search of `n` tokens costs about `n * width`
answers a token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """The best subset of a search.

    Attributes:
        mask: bool `(n,)`, the tokens kept.
        reward: its reward.
        evaluated: how many subsets were rewarded on the way.
        exhaustive: whether every subset of that size was, so that there is none better.
    """

    mask: Tensor
    reward: float
    evaluated: int
    exhaustive: bool


def beam_search(
    rewards: Callable[[Tensor], Tensor], num_tokens: int, count: int, *, width: int | None = None
) -> list[Found]:
    """Search the subsets of `1, ..., count` tokens for those with the highest reward.

    Every subset of the beam is extended by every token that it has not; equal subsets are rewarded once, and the `width` best of a size (the one with
    the lower tokens at ties) make the next beam.

    Args:
        rewards: bool masks `(M, n)` to their rewards `(M,)`, larger = better.
        num_tokens: `n`.
        count: size of the largest subset, in [1, n].
        width: subsets in the beam; None: all of them, which is exhaustive.

    Returns:
        The best subset of each size, from 1 to `count`.

    Raises:
        ValueError: a size or a width that is out of range, or rewards of another number.
    """
    if not 1 <= count <= num_tokens:
        raise ValueError(f"count={count} is outside [1, {num_tokens}]: give the size of the largest subset.")
    if width is not None and width < 1:
        raise ValueError(f"width={width} is under 1: give the number of subsets in the beam, or None for all.")
    beam = torch.zeros(1, num_tokens, dtype=torch.bool)
    evaluated, exhaustive, best = 0, True, []
    for _ in range(count):
        grown = beam[:, None] | torch.eye(num_tokens, dtype=torch.bool)  # (beam, n, n): one more token each
        grown = grown[~beam]  # only tokens that were not there
        # Lexicographic, and flipped so that lower tokens come first.
        masks = grown.int().unique(dim=0).flip(0).bool()
        found = rewards(masks).float()
        if found.shape != masks.shape[:1]:
            raise ValueError(f"rewards has shape {tuple(found.shape)} for {len(masks)} subsets: give one each.")
        evaluated += len(masks)
        order = found.sort(descending=True, stable=True).indices
        best.append(Found(masks[order[0]], found[order[0]].item(), evaluated, exhaustive))
        if width is not None and len(masks) > width:
            order, exhaustive = order[:width], False
        beam = masks[order]
    return best
