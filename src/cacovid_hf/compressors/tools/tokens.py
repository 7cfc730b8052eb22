"""Masks of tokens: the highest scores, and tokens evenly spread; nothing is read back from the device."""

import torch
from torch import Tensor

from ...utils.tensors import to_device_async


def top_tokens(scores: Tensor, counts: Tensor | int, most: int | None = None) -> Tensor:
    """Mark the highest `counts` scores of every row; at ties the lower index wins.

    Args:
        scores: `(..., P)`, larger = keep.
        counts: how many to mark, one number or `(...)` integers in [0, P].
        most: bound of `counts` that the caller knows; what lies beyond the `most` highest is then not ordered.

    Returns:
        bool `(..., P)`.
    """
    size = scores.shape[-1]
    if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(-1, order, torch.arange(size, device=order.device).expand_as(order))
        return rank < (counts.unsqueeze(-1) if isinstance(counts, Tensor) else counts)
    keys = _distinct_keys(scores.float())
    if not isinstance(counts, Tensor):
        if not 0 < counts < size:
            return torch.full_like(scores, counts > 0, dtype=torch.bool)
        return keys >= keys.topk(counts, sorted=False).values.amin(dim=-1, keepdim=True)
    highest = keys.topk(min(size, most or size)).values
    last = highest.gather(-1, counts.unsqueeze(-1).clamp(min=1) - 1)
    return (keys >= last) & (counts.unsqueeze(-1) > 0)


def _distinct_keys(scores: Tensor) -> Tensor:
    """int64 in the order of float32 `scores` `(..., P)`, no two of a row alike: the lower index is the larger.

    A float's bits are in its order, those of the negative ones reversed; the index takes the lower half.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    places = torch.arange(scores.shape[-1] - 1, -1, -1, device=scores.device)
    return (bits.long() << 32) + places


def highest_tokens(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` highest of all scores `(T, P)`: bool `(T, P)`; at ties the lower index wins."""
    return top_tokens(scores.flatten(), count).view(scores.shape)


def spread_tokens(keep: Tensor, num_kept: int, num_more: int) -> Tensor:
    """Add `num_more` tokens, evenly spaced in raster order over those not kept so far (uniform in space and time).

    Args:
        keep: bool `(N,)` with exactly `num_kept` true; the count is the caller's, so that nothing is read back.
        num_more: how many to add; of the `M` free tokens those at `round(linspace(0, M - 1, num_more))`.

    Returns:
        bool `(N,)` with `num_kept + num_more` true.
    """
    if num_more == 0:
        return keep
    num_free = keep.numel() - num_kept
    chosen = torch.zeros(num_free, dtype=torch.bool)
    # float32 as published: where a position falls on .5, its rounding error decides. But neighbours must not fall together, which float32 cannot
    # promise for steps near one or millions of tokens.
    dtype = torch.float32 if num_free < 1 << 20 and 4 * num_more < 3 * num_free else torch.float64
    chosen[torch.linspace(0, num_free - 1, num_more, dtype=dtype).round().long()] = True
    place_among_free = (~keep).cumsum(0).sub_(1).clamp_(min=0)
    return keep | to_device_async(chosen, keep.device)[place_among_free]
