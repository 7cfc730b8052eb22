"""Which video tokens to keep: contribution scores and an integer budget in, a keep mask out.

Pure functions of tensors (CaCoVID, arXiv 2602.01649, section on inference; published constants as defaults). No model is
imported and nothing is read back from the device per frame or per token. The published code moves single tokens between
frames in a Python loop until the frame budgets add up; here the same result comes from a water level (`_settle`).
"""

import torch
from torch import Tensor

from ...policies.settings import PUBLISHED_SELECTION, Selection
from ...ratio import check_retention_ratio, floor_of, token_budget
from .tokens import spread_tokens, top_tokens

NOT_FINITE = (
    "The scores hold NaN or infinite values, so no tokens can be ranked: check the weights of policy and model and the dtype "
    "(float16 overflows; use bfloat16 or float32)."
)


def frame_budgets(
    frame_scores: Tensor, tokens_per_frame: int, retention_ratio: float, share: float, cap: float
) -> Tensor:
    """Split the contribution budget over the frames by their scores (`algorithm` steps 1 and 2 of the inference section).

    Weights are a softmax of the scores scaled to [-3, 3], clipped to `[1/(2T), cap/T]`; budgets are rounded shares of the
    budget within `[1, min(P, int(share * P * cap * retention_ratio))]`, then settled to the exact sum by taking single tokens
    from the largest or giving them to the smallest, first frame first. With fewer tokens than frames, one each goes to the frames with the
    largest weights (ours; the published correction empties the first frames whatever their score).

    Args:
        frame_scores: `(T,)` finite, larger = keep.
        tokens_per_frame: `P`.
        retention_ratio: in (0, 1].
        share: part of the budget that is spent by contribution, in [0, 1].
        cap: largest weight of a frame relative to the mean; the published `m` is `cap * retention_ratio`.

    Returns:
        int64 `(T,)`, summing to `floor(share * retention_ratio * T * P)`.
    """
    num_frames, num_tokens = frame_scores.numel(), frame_scores.numel() * tokens_per_frame
    budget = contribution_budget(num_tokens, retention_ratio, share)
    # Settled in float64 on any device, so that no device's float32 exp decides a rounding.
    scores = frame_scores.double()
    scale = scores.abs().max()
    weights = torch.softmax(3.0 * scores / torch.where(scale > 0, scale, 1.0), dim=0)
    weights = weights.clamp(min=1.0 / (2 * num_frames)).clamp(max=cap / num_frames)
    weights = weights / weights.sum()
    if budget < num_frames:
        return top_tokens(weights, budget).long()
    largest = min(tokens_per_frame, floor_of(share * tokens_per_frame * (cap * retention_ratio)))
    counts = torch.round(weights * round(share * retention_ratio * num_tokens)).long()
    return _settle(counts.clamp(min=1).clamp(max=largest), budget, tokens_per_frame)


def largest_frame_budget(
    num_frames: int, tokens_per_frame: int, retention_ratio: float, share: float, cap: float
) -> int:
    """Bound of `frame_budgets`, known without its scores: its clip, or the level to which the smallest are raised."""
    budget = contribution_budget(num_frames * tokens_per_frame, retention_ratio, share)
    clip = floor_of(share * tokens_per_frame * (cap * retention_ratio))
    return min(tokens_per_frame, max(clip, budget // num_frames + 1))


def contribution_budget(num_tokens: int, retention_ratio: float, share: float) -> int:
    """Return the number of tokens chosen by contribution: `floor(share * retention_ratio * N)`, with a share in [0, 1] at most the budget."""
    return floor_of(share * retention_ratio * num_tokens)


def _settle(counts: Tensor, total: int, most: int) -> Tensor:
    """Make `counts` `(T,)` in [0, most] add up to `total` by moving single tokens, without moving single tokens.

    Taking one from the largest (first index at ties), again and again, lowers everything above a level to that level and then the first few
    at the level by one more; giving to the smallest is the mirror image. The level is found from the histogram of the counts.

    Example: `counts` 7 5 5 2 are to add up to 15, so four must go.

    ```
    7  #
    6  #
    5  # # #      level 5: what is above it goes, two tokens        5 5 5 2
    4  # # #      two more: one from each of the first two there    4 4 5 2
    3  # # #
    2  # # # #
    1  # # # #
    ```
    """
    surplus = counts.sum() - total
    histogram = torch.zeros(most + 2, dtype=torch.int64, device=counts.device)
    histogram.scatter_add_(0, counts, torch.ones_like(counts))
    # removed[v]: tokens above level v; added[v]: tokens missing below level v.
    at_least = histogram.flip(0).cumsum(0).flip(0)
    removed = at_least.flip(0).cumsum(0).flip(0) - at_least
    at_most = histogram.cumsum(0)
    added = at_most.cumsum(0) - at_most

    take, give = surplus.clamp(min=0), (-surplus).clamp(min=0)
    ceiling = (removed > take).sum()
    floor = (added <= give).sum() - 1
    lowered, raised = counts.clamp(max=ceiling), counts.clamp(min=floor)
    # `removed[ceiling]` would read the index back from the device.
    rest_to_take = take - removed.gather(0, ceiling[None])
    rest_to_give = give - added.gather(0, floor[None])
    at_ceiling, at_floor = lowered == ceiling, raised == floor
    lowered = lowered - (at_ceiling & (at_ceiling.cumsum(0) <= rest_to_take)).long()
    raised = raised + (at_floor & (at_floor.cumsum(0) <= rest_to_give)).long()
    return torch.where(surplus > 0, lowered, raised)


def select_tokens(
    token_scores: Tensor,
    frame_scores: Tensor,
    retention_ratio: float,
    *,
    contribution_share: float = PUBLISHED_SELECTION.contribution_share,
    frame_cap: float = PUBLISHED_SELECTION.frame_cap,
    scope: str = PUBLISHED_SELECTION.scope,
    check_finite: bool = True,
) -> Tensor:
    """Keep exactly `max(1, floor(retention_ratio * T * P))` tokens of a video: first by contribution, the rest uniformly.

    Deterministic on any device; at ties the lower index wins. Departures from the published code: exact counts for every grid and ratio, frames
    scored where the budget is below one token a frame (see `frame_budgets`), constant scores allowed.

    Args:
        token_scores: `(T, P)`, contribution of each token, larger = keep.
        frame_scores: `(T,)`, contribution of each frame, larger = more of the budget.
        retention_ratio: fraction of the `T * P` tokens kept, in (0, 1].
        contribution_share: part of the budget chosen by the scores, in [0, 1] (paper: 0.5); the rest is spread evenly over the
            tokens not chosen.
        frame_cap: how far a frame may exceed the mean, as a multiple (paper: 1.5); `frame_cap * retention_ratio` is the published
            maximum frame ratio.
        scope: `"frame"` (paper) gives every frame a budget by its score; `"tokens"` (ours) ranks all tokens of the video at once by
            `token_scores` alone, `"video"` (ours) by `token_scores + frame_scores`; both ignore `frame_cap`. Nothing puts the two scores on
            one scale, so that under `"video"` the heads' spreads decide which of them counts.
        check_finite: whether to raise for scores that are not finite, which waits for the device; without it such scores still give
            the exact number of tokens, and meaningless ones.

    Returns:
        bool `(T, P)`, true = keep.

    Raises:
        ValueError: shapes that do not fit, settings out of range, scores that are not finite.
    """
    retention_ratio = check_retention_ratio(retention_ratio)
    selection = Selection(contribution_share, frame_cap, scope)
    if token_scores.ndim != 2 or 0 in token_scores.shape:
        raise ValueError(f"token_scores has shape {tuple(token_scores.shape)}: give (T, P), frames by tokens a frame.")
    if frame_scores.shape != token_scores.shape[:1]:
        raise ValueError(
            f"frame_scores has shape {tuple(frame_scores.shape)}, token_scores {tuple(token_scores.shape)}: give one frame score "
            f"a frame, shape ({token_scores.shape[0]},)."
        )
    token_scores, frame_scores = token_scores.detach().float(), frame_scores.detach().float()
    if check_finite and not bool(all_finite(token_scores, frame_scores)):
        raise ValueError(NOT_FINITE)
    num_tokens = token_scores.numel()
    budget = token_budget(num_tokens, retention_ratio)
    if budget == num_tokens:
        return torch.ones_like(token_scores, dtype=torch.bool)
    return spend(token_scores, frame_scores, retention_ratio, budget, selection)


def spend(
    token_scores: Tensor,
    frame_scores: Tensor,
    retention_ratio: float,
    budget: int,
    selection: Selection,
) -> Tensor:
    """`select_tokens` of arguments that are known to be good, with the budget `(1 <= budget < T * P)` that the ratio means."""
    share = selection.contribution_share
    by_contribution = contribution_budget(token_scores.numel(), retention_ratio, share)
    if selection.scope == "tokens":
        keep = top_tokens(token_scores.flatten(), by_contribution)
    elif selection.scope == "video":
        keep = top_tokens((token_scores + frame_scores[:, None]).flatten(), by_contribution)
    else:
        settings = (token_scores.shape[1], retention_ratio, share, selection.frame_cap)
        counts = frame_budgets(frame_scores, *settings)
        keep = top_tokens(token_scores, counts, largest_frame_budget(len(token_scores), *settings)).flatten()
    return spread_tokens(keep, by_contribution, budget - by_contribution).view_as(token_scores)


def all_finite(*scores: Tensor) -> Tensor:
    """Bool scalar on the device: no NaN and nothing infinite in any of the tensors."""
    return torch.stack([(values * 0).sum() for values in scores]).sum() == 0
