"""A video's integer budget shared out over its frames, or over other groups of its tokens: exact sums, nothing read back."""

import torch
from torch import Tensor


def even_counts(total: int, num_frames: int) -> Tensor:
    """`total` split evenly, frames that get one more spread over time: int64 `(T,)` on the CPU, summing to `total`."""
    ends = torch.arange(1, num_frames + 1) * total // num_frames
    return ends.diff(prepend=ends.new_zeros(1))


def apportion(weights: Tensor, total: int | Tensor, most: Tensor | int, least: int = 0) -> Tensor:
    """Integer shares in proportion to weights, within bounds, by largest remainders (ours; the published methods round and lose the rest).

    The real-valued shares are `clamp(scale * weights, least, most)` with the scale at which they sum to `total`; they are rounded down and the rest
    goes one by one to the largest fractions, first group first.

    Args:
        weights: `(G,)`, not negative.
        total: to share out, between `least * G` and the sum of `most`.
        most: upper bound, one for all or `(G,)`.
        least: lower bound.

    Returns:
        int64 `(G,)`, summing to `total`.
    """
    weights = weights.double().clamp(min=1e-30)
    most = torch.as_tensor(most, device=weights.device).double().expand_as(weights)
    total = torch.as_tensor(total, device=weights.device).double()
    # The sum of the bounded shares is piecewise linear in the scale, with a bend where a group meets a bound.
    bends = torch.cat([weights.new_zeros(1), least / weights, most / weights]).sort().values
    sums = (bends[:, None] * weights).clamp(min=least).minimum(most).sum(1)
    above = torch.searchsorted(sums, total).clamp(1, len(bends) - 1)
    low, high = sums[above - 1], sums[above]
    part = torch.where(high > low, (total - low) / (high - low), 1.0)
    scale = bends[above - 1] + part * (bends[above] - bends[above - 1])
    shares = (scale * weights).clamp(min=least).minimum(most)
    counts = (shares + 1e-9).floor()
    order = (shares - counts).masked_fill(counts >= most, -1).sort(descending=True, stable=True).indices
    more = torch.arange(len(weights), device=weights.device) < (total - counts.sum())
    return counts.scatter_add(0, order, more.double()).long()
