"""Which subsets of a video's tokens to try: scores and a sampling ratio in, keep masks of `G` rollouts out.

Pure functions of tensors on any device, seeded by an explicit generator; counts are exact and ties go to the lower index. OCSS is the paper's
"online combinatorial space sampling" (arXiv 2602.01649, section on training; published constants as defaults), the multinomial and the random
sampler are what it is compared with. Each draws in every frame on its own or, with `scope="video"`, in the whole video at once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..compressors.tools.density_peaks import density_peaks
from ..compressors.tools.selection import top_tokens
from ..ratio import check_retention_ratio

SAMPLING_SCOPES = ("frame", "video")
_EPSILON = 1e-9  # absorbs float accidents in counts


def rollout_size(num_tokens: int, ratio: float) -> int:
    """Return the number of tokens that a rollout keeps of `num_tokens`: `max(1, round(ratio * num_tokens))`."""
    return max(1, round(check_retention_ratio(ratio, "ratio") * num_tokens))


def cap_probabilities(probabilities: Tensor, most: float) -> Tensor:
    """Limit every probability of a distribution to `most`, the excess moved to the others in proportion (water filling).

    Each of the `n` probabilities is first raised to `1/n^2` and the row normalised; where the cap then binds, raised and normalised once
    more, as the published code does. Departures from it: rows of a batch are distributions of their own, and `most = 1/n` is allowed (uniform).

    Args:
        probabilities: `(..., n)`, not negative; need not add up to one.
        most: the cap, at least `1/n`; without effect at 1 and above. A single probability is 1 whatever the cap.

    Returns:
        `(..., n)`, each row adding up to one.

    Raises:
        ValueError: a cap under `1/n`.
    """
    size = probabilities.shape[-1]
    if size == 1:
        return torch.ones_like(probabilities)
    if most * size < 1 - _EPSILON:
        raise ValueError(
            f"most={most} is too small for {size} probabilities, which would not reach a sum of 1: give at least {1 / size:.4g}."
        )
    raised = _raise_and_normalise(probabilities, 1 / size**2)  # (..., n)
    binds = raised.amax(-1, keepdim=True) > most
    raised = torch.where(binds, _raise_and_normalise(raised, 1 / size**2), raised)

    # With the j largest at the cap, the others share what is left, scaled alike. The smallest j that leaves none above the cap is the number of
    # j at which the next largest is still above it.
    largest = raised.sort(dim=-1, descending=True).values
    left = 1 - most * torch.arange(size, device=raised.device)  # (n,)
    scale = left.clamp(min=0) / largest.flip(-1).cumsum(-1).flip(-1)  # (..., n), by j
    num_capped = (largest * scale > most).sum(-1, keepdim=True).clamp(max=size - 1)
    return (raised * scale.gather(-1, num_capped)).clamp(max=most)


def _raise_and_normalise(probabilities: Tensor, least: float) -> Tensor:
    raised = probabilities.clamp(min=least)
    return raised / raised.sum(-1, keepdim=True)


# ---------------------------------------------------------------- token rollouts


def ocss_groups(token_scores: Tensor, num_groups: int) -> Tensor:
    """Split the tokens of every row into groups of like score, near-equal in size, the first `P % num_groups` one longer.

    Args:
        token_scores: `(..., P)`, larger = keep; at ties the lower index comes first.
        num_groups: `l`, in [1, P].

    Returns:
        int64 `(..., P)`, the group of each token; 0 has the highest scores.
    """
    num_tokens = token_scores.shape[-1]
    if not 1 <= num_groups <= num_tokens:
        raise ValueError(f"num_groups={num_groups} does not split {num_tokens} tokens: give 1 to {num_tokens}.")
    shorter, num_longer = divmod(num_tokens, num_groups)
    sizes = torch.tensor([shorter + 1] * num_longer + [shorter] * (num_groups - num_longer))
    group_of_rank = torch.arange(num_groups).repeat_interleave(sizes).to(token_scores.device)  # (P,)
    order = token_scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(-1, order, group_of_rank.expand_as(order))


def ocss_probabilities(token_scores: Tensor, num_groups: int, group_cap: float = 2.0) -> tuple[Tensor, Tensor]:
    """Probabilities that OCSS draws groups with, and tokens inside a drawn group.

    A group's probability is its mass under the softmax of the row's scores, capped at `group_cap / l` (within [0.1, 0.9]; no cap for a single
    group). Inside a group of about `e = P // l` tokens, the softmax over the group is limited to `[1/(2e), 2/e]` and normalised.

    Args:
        token_scores: `(..., P)`, larger = keep.
        num_groups: `l`, in [1, P].
        group_cap: how far a group may exceed the mean, as a multiple of at least 1 (paper: 2); larger = greedier.

    Returns:
        Groups `(..., l)`, and tokens `(..., l, P)`, 0 outside the group; both add up to one over the last dimension.
    """
    if not group_cap >= 1:
        raise ValueError(f"group_cap={group_cap} is under 1, the mean: give a multiple of it (2 as published).")
    groups = ocss_groups(token_scores, num_groups)
    members = groups.unsqueeze(-2) == torch.arange(num_groups, device=groups.device).unsqueeze(-1)  # (..., l, P)
    scores = token_scores.unsqueeze(-2).where(members, -torch.inf)
    mass = (scores.logsumexp(-1) - token_scores.logsumexp(-1, keepdim=True)).exp()  # (..., l)
    group_probabilities = cap_probabilities(mass, max(min(group_cap / num_groups, 0.9), 0.1))

    size = token_scores.shape[-1] // num_groups
    limited = scores.softmax(-1).clamp(min=1 / (2 * size), max=2 / size).where(members, 0)
    return group_probabilities, limited / limited.sum(-1, keepdim=True)


def sample_ocss(
    token_scores: Tensor,
    ratio: float,
    num_rollouts: int,
    *,
    scope: str = "frame",
    spread: float = 2.0,
    group_cap: float = 2.0,
    generator: torch.Generator,
) -> Tensor:
    """Online combinatorial space sampling: draw one group of tokens of like score, then the tokens inside it.

    Of the `n` tokens of a frame (or of the video), `k = max(1, round(ratio * n))` out of one of `l = max(int(1 / (spread * ratio)), 1)`
    groups, frames and rollouts independent of each other; rollout 0 keeps the top `k` instead (greedy, the contrast for the others). Departure
    from the published code: never so many groups that one of them holds fewer than `k` tokens.

    Args:
        token_scores: `(T, P)`, larger = keep.
        ratio: fraction kept, in (0, 1].
        num_rollouts: `G`.
        scope: `"frame"` (paper) draws in every frame, `"video"` (ours) in the whole video at once.
        spread: the paper's lambda, the size of a group relative to `k`; larger = more subsets inside a group.
        group_cap: see `ocss_probabilities`.
        generator: where the randomness comes from.

    Returns:
        bool `(G, T, P)`.

    Raises:
        ValueError: settings out of range, scores that are not finite.
    """
    if not spread > 0:
        raise ValueError(
            f"spread={spread} is not above 0: give the size of a group relative to a rollout (2 as published)."
        )
    scores, count = _rows(token_scores, ratio, num_rollouts, scope)
    num_groups = min(max(int(1 / (spread * ratio) + _EPSILON), 1), scores.shape[1] // count)
    group_probabilities, probabilities = ocss_probabilities(scores, num_groups, group_cap)  # (rows, l), (rows, l, n)

    drawn = _draw(group_probabilities.log(), 1, num_rollouts, generator)  # (G, rows, l), one true
    inside = torch.where(drawn.unsqueeze(-1), probabilities, 0).sum(-2)  # (G, rows, n)
    return _with_greedy(_draw_each(inside.log(), count, generator), scores, count).view(
        num_rollouts, *token_scores.shape
    )


def sample_multinomial(
    token_scores: Tensor, ratio: float, num_rollouts: int, *, scope: str = "frame", generator: torch.Generator
) -> Tensor:
    """Draw `max(1, round(ratio * n))` tokens of a frame (or of the video) without replacement by the softmax of their scores.

    Ours (Gumbel top-k). Arguments, rollout 0, result and errors as in `sample_ocss`.
    """
    scores, count = _rows(token_scores, ratio, num_rollouts, scope)
    drawn = _draw(scores, count, num_rollouts, generator)
    return _with_greedy(drawn, scores, count).view(num_rollouts, *token_scores.shape)


def sample_random(
    token_scores: Tensor, ratio: float, num_rollouts: int, *, scope: str = "frame", generator: torch.Generator
) -> Tensor:
    """Draw `max(1, round(ratio * n))` tokens of a frame (or of the video), each subset as likely as any other.

    Ours. Arguments, rollout 0 (by the scores, here too), result and errors as in `sample_ocss`.
    """
    scores, count = _rows(token_scores, ratio, num_rollouts, scope)
    drawn = _draw(torch.zeros_like(scores), count, num_rollouts, generator)
    return _with_greedy(drawn, scores, count).view(num_rollouts, *token_scores.shape)


def sample_bernoulli(token_scores: Tensor, num_rollouts: int, *, generator: torch.Generator) -> Tensor:
    """Keep every token with its own probability `sigmoid(score)`: how many is the policy's decision too.

    Ours: the two-way choices that `objective.cpo_loss` takes tokens for, drawn literally. Rollout 0 keeps the tokens with a positive score, which
    is what `AutoBudget` keeps; a rollout that would keep nothing keeps the highest score.

    Args:
        token_scores: `(T, P)`, keep minus drop logit.
        num_rollouts: `G`.
        generator: where the randomness comes from.

    Returns:
        bool `(G, T, P)`, at least one token each.

    Raises:
        ValueError: scores that are not finite.
    """
    scores = _checked(token_scores, num_rollouts)
    uniform = torch.rand(num_rollouts, *scores.shape, generator=generator, device=generator.device)
    masks = uniform.to(scores.device) < scores.sigmoid()
    masks[:1] = scores > 0
    empty = ~masks.flatten(1).any(dim=1)
    return masks | (empty[:, None, None] & top_tokens(scores.flatten(), 1).view_as(scores))


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ocss": sample_ocss,
    "multinomial": sample_multinomial,
    "random": sample_random,
}


# ---------------------------------------------------------------- frame rollouts


@torch.no_grad()
def density_peak_select(features: Tensor, count: int, num_neighbours: int = 4) -> Tensor:
    """Keep the `count` tokens that best stand for all: dense, and far from any denser one (DPC-kNN).

    Distances are Euclidean over `sqrt(D)`. Density is `exp(-mean d^2)` over the nearest tokens, itself among them; the score is density times the
    distance to the nearest denser token (the largest distance of all for the densest). Departure from the published code: of equal
    densities the lower index counts as denser, instead of random jitter.

    Args:
        features: `(..., M, D)`.
        count: how many to keep of the `M`, in [0, M].
        num_neighbours: nearest tokens that the density is taken over (paper: 4); at most `M` are.

    Returns:
        bool `(..., M)`.
    """
    num_tokens, width = features.shape[-2:]
    if not 0 <= count <= num_tokens:
        raise ValueError(f"count={count} is outside [0, {num_tokens}]: there are {num_tokens} tokens to choose from.")
    sets = features.reshape(-1, num_tokens, width)
    everything = torch.ones(sets.shape[:2], dtype=torch.bool, device=features.device)
    return density_peaks(sets, everything, count, num_neighbours)[0].view(features.shape[:-1])


@torch.no_grad()
def sample_frames(
    frame_scores: Tensor,
    features: Tensor,
    ratio: float,
    num_rollouts: int,
    generator: torch.Generator,
    *,
    scope: str = "frame",
    frame_share: float = 0.125,
    frame_cap: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Draw a few frames of a video by their scores, and inside them as many tokens as a token rollout keeps, by diversity.

    Of the `T` frames `ceil(frame_share * T)` without replacement, by the softmax of their scores capped at `frame_cap / T`; rollout 0 takes the top
    ones instead. Departures from the published code: the cap holds in every rollout, and where the frames cannot hold the tokens there are as
    many as can.

    Args:
        frame_scores: `(T,)`, larger = keep.
        features: `(T, P, D)`, the video tokens as embedded for the language model.
        ratio: fraction of tokens kept, in (0, 1].
        num_rollouts: `G`.
        generator: where the randomness comes from.
        scope: the tokens of a rollout: `"frame"`, `max(1, round(ratio * P)) * T` as when drawing in every frame; `"video"`,
            `max(1, round(ratio * T * P))` as when drawing in the whole video.
        frame_share: fraction of frames drawn, in (0, 1] (paper: 0.125).
        frame_cap: how far a frame's probability may exceed the mean, as a multiple of at least 1 (paper: 3); larger = greedier.

    Returns:
        Frames bool `(G, T)`, and tokens bool `(G, T, P)`, all of them inside the frames.

    Raises:
        ValueError: shapes that do not fit, settings out of range, scores that are not finite.
    """
    if features.ndim != 3 or frame_scores.shape != features.shape[:1]:
        raise ValueError(
            f"frame_scores has shape {tuple(frame_scores.shape)}, features {tuple(features.shape)}: give (T,) and (T, P, D)."
        )
    _check_scope(scope)
    if not frame_cap >= 1:
        raise ValueError(f"frame_cap={frame_cap} is under 1, the mean: give a multiple of it (3 as published).")
    scores = _checked(frame_scores, num_rollouts)
    num_frames, tokens_per_frame = features.shape[:2]
    if scope == "frame":
        num_kept = rollout_size(tokens_per_frame, ratio) * num_frames
    else:
        num_kept = rollout_size(num_frames * tokens_per_frame, ratio)
    share = check_retention_ratio(frame_share, "frame_share")
    count = max(math.ceil(share * num_frames - _EPSILON), math.ceil(num_kept / tokens_per_frame))

    probabilities = cap_probabilities(scores.softmax(0), frame_cap / num_frames)
    frames = _with_greedy(_draw(probabilities.log(), count, num_rollouts, generator), scores, count)  # (G, T)
    # A stable sort brings the drawn frames to the front, in order.
    places = frames.sort(dim=1, descending=True, stable=True).indices[:, :count].to(features.device)  # (G, count)
    kept = density_peak_select(features[places].flatten(1, 2), num_kept).unflatten(1, (count, tokens_per_frame))
    tokens = torch.zeros(num_rollouts, num_frames, tokens_per_frame, dtype=torch.bool, device=features.device)
    tokens[torch.arange(num_rollouts, device=places.device)[:, None], places] = kept
    return frames, tokens


# ---------------------------------------------------------------- shared


def _rows(token_scores: Tensor, ratio: float, num_rollouts: int, scope: str) -> tuple[Tensor, int]:
    """Return the rows of tokens `(rows, n)` that are drawn from on their own, and how many of each."""
    _check_scope(scope)
    scores = _checked(token_scores, num_rollouts)
    rows = scores.reshape(1, -1) if scope == "video" else scores.reshape(-1, scores.shape[-1])
    return rows, rollout_size(rows.shape[1], ratio)


def _check_scope(scope: str) -> None:
    if scope not in SAMPLING_SCOPES:
        raise ValueError(f"scope={scope!r} is unknown: choose one of {', '.join(map(repr, SAMPLING_SCOPES))}.")


def _checked(scores: Tensor, num_rollouts: int) -> Tensor:
    """Scores in float32 without their graph."""
    if num_rollouts < 0:
        raise ValueError(f"num_rollouts={num_rollouts} is negative: give the number of subsets to draw.")
    if scores.numel() == 0:
        raise ValueError(f"The scores have shape {tuple(scores.shape)}: there is nothing to draw from.")
    scores = scores.detach().float()
    if not bool(scores.isfinite().all()):
        raise ValueError(
            "The scores hold NaN or infinite values, so nothing can be drawn by them: lower the learning rate, or raise the KL weight."
        )
    return scores


def _draw(log_weights: Tensor, count: int, num_rollouts: int, generator: torch.Generator) -> Tensor:
    """`num_rollouts` times `count` of each row of `(..., n)` without replacement, in proportion to the weights: bool `(G, ..., n)`."""
    return _draw_each(log_weights.expand(num_rollouts, *log_weights.shape), count, generator)


def _draw_each(log_weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of each row of `(..., n)` without replacement, in proportion to the weights: Gumbel noise added, the largest taken."""
    # Drawn on the generator's device: one seed gives the same subsets wherever the scores are.
    noise = torch.empty(log_weights.shape, device=generator.device).exponential_(generator=generator)
    gumbel = -noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()
    return top_tokens(log_weights + gumbel.to(log_weights.device), count)


def _with_greedy(masks: Tensor, scores: Tensor, count: int) -> Tensor:
    """Replace rollout 0 of `(G, ..., n)` by the highest scores of `(..., n)`."""
    masks[:1] = top_tokens(scores, count)
    return masks
