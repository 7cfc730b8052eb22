"""InfoMerge: FastVID with static places that are kept once, and budgets of segments by what they hold (arXiv 2606.02161)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Merged, Scores
from .fastvid import context_tokens, frame_counts, merge_into
from .tools.counts import apportion, even_counts
from .tools.density_peaks import best_of, peak_scores
from .tools.ranges import check_count
from .tools.segments import frame_slices, segment_lengths
from .tools.tokens import top_tokens

# Published for three ratios: (ratio, tau, rho).
PUBLISHED = ((0.05, 2.0, 0.05), (0.10, 1.2, 0.10), (0.15, 1.2, 0.09))
STATIC = ("tfd", "difference")
# Below this spread, values of segments differ by rounding alone.
_EQUAL = 1e-6


@dataclass(frozen=True)
class InfoMerge(Compressor):
    """`fastvid` with two additions; blind to the question. With `rho=0` and `alpha=beta=0` it is `fastvid` bit for bit.

    Published: places whose likeness to the other frames of a segment changes least over time are static. A static place that is salient loses saliency
    in the segment's later frames, and becomes the segment's mean there. A static place that is a centre is not one again in the segment's later anchors.
    Segments unlike the video, and of many directions, get more merged tokens.
    Derived by us: `tau` and `rho` are interpolated between the three published ratios, and the nearest ones count beyond. z-scores of one segment, or of
    equal ones, are 0. Spreads are those of a population. A segment of one frame has no static places. Shares start from those of `fastvid` and are
    apportioned to the exact count.
    Departures: those of `fastvid` (saliency by the tower's mean query, no jitter, exact budget). Where an anchor has nothing else left, a static place is a
    centre again.

    Args:
        tau: sharpness of the segments' shares; None: as published for the ratio.
        rho: part of the places of a segment that are static; None: as published for the ratio.
        penalty: how far the saliency of a static place falls, in standard deviations of its frame (published lambda).
        alpha: weight of a segment's distance from the video.
        beta: weight of the entropy of its spectrum; larger = busy segments get more.
        static: how change is measured: `"tfd"` (published) compares each frame's likenesses to all frames with those of the frame before,
            `"difference"` (of the paper's ablation, nearly as good) neighbouring frames alone.
        min_segments: as of `fastvid`, like the settings below.
        threshold: cosine of neighbouring frames below which a segment ends.
        context_share: part of the budget for merged tokens (published d).
        anchor_stride: every so-many-th frame of a segment is an anchor.
        own_weight: least weight of an anchor's own token in the merge (published mu).
        num_neighbours: nearest tokens that a density is taken over.
    """

    tau: float | None = None
    rho: float | None = None
    penalty: float = 12.0
    alpha: float = 0.9
    beta: float = 0.1
    static: str = "tfd"
    min_segments: int = 8
    threshold: float = 0.9
    context_share: float = 0.4
    anchor_stride: int = 4
    own_weight: float = 0.6
    num_neighbours: int = 4

    name = "infomerge"
    reads_tower = True

    def __post_init__(self):
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"rho={self.rho!r} is outside [0, 1]: give the part of the places that are static.")
        if not 0 <= self.context_share <= 1:
            raise ValueError(
                f"context_share={self.context_share!r} is outside [0, 1]: give the part of the budget for merged tokens."
            )
        if self.anchor_stride < 1 or self.min_segments < 1:
            raise ValueError(
                f"anchor_stride={self.anchor_stride!r} and min_segments={self.min_segments!r} must be at least 1."
            )
        if self.static not in STATIC:
            raise ValueError(f"static={self.static!r} is unknown: choose one of {', '.join(map(repr, STATIC))}.")
        check_count("num_neighbours", self.num_neighbours)

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Merged:
        """`merge_once` with shares by `segment_weights`, read back from the device once."""
        if budget is None:
            raise ValueError("InfoMerge keeps an exact number of tokens: give one.")
        tau, rho = published_settings(retention_ratio)
        tau, rho = tau if self.tau is None else self.tau, rho if self.rho is None else self.rho
        features = prompt.video_features(span).float()
        segments = segment_lengths(features.mean(1), self.min_segments, self.threshold)
        a_frame = even_counts(budget, span.num_frames)
        of_context = context_tokens(a_frame, self.context_share)
        totals = torch.stack([of_context[frames].sum() for frames in frame_slices(segments)])
        if self.alpha or self.beta:
            weights = totals * segment_weights(features, segments, tau, self.alpha, self.beta).cpu()
            total = int(totals.sum())
            totals = apportion(weights, total, total, int(totals.amin() >= 1))
        counts = (segments, span.tokens_per_frame, self.context_share, self.anchor_stride, True, totals.tolist())
        salient, context = frame_counts(a_frame, *counts)
        is_static = static_places(features, segments, int(rho * span.tokens_per_frame + 1e-9), self.static)
        saliency = prompt.tower_attention(span).of_mean_query()
        settings = (self.penalty, self.own_weight, self.num_neighbours)
        return merge_once(features, saliency, is_static, segments, salient, context, *settings)


def published_settings(retention_ratio: float) -> tuple[float, float]:
    """`tau` and `rho` at a ratio: between those of the nearest published ratios."""
    below = [row for row in PUBLISHED if row[0] <= retention_ratio] or [PUBLISHED[0]]
    above = [row for row in PUBLISHED if row[0] >= retention_ratio] or [PUBLISHED[-1]]
    low, high = below[-1], above[0]
    part = (retention_ratio - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
    return low[1] + part * (high[1] - low[1]), low[2] + part * (high[2] - low[2])


def static_places(features: Tensor, segments: list[int], count: int, measure: str = "tfd") -> Tensor:
    """Mark the places of every segment that change least.

    Args:
        features: `(T, P, D)`.
        segments: lengths in frames.
        count: how many a segment; none in a segment of one frame.
        measure: see `InfoMerge`.

    Returns:
        bool `(K, P)`, a segment a row.
    """
    rows = []
    for frames in frame_slices(segments):
        if frames.stop - frames.start == 1 or count == 0:
            rows.append(torch.zeros(features.shape[1], dtype=torch.bool, device=features.device))
            continue
        part = features[frames].float()
        if measure == "tfd":
            units = normalize(part, dim=-1).transpose(0, 1)  # (P, V, D)
            likeness = units @ units.mT  # (P, V, V)
            changed = likeness.diff(dim=1).abs().mean((1, 2))
        else:
            changed = (1 - cosine_similarity(part[1:], part[:-1], dim=-1)).mean(0)
        rows.append(top_tokens(-changed, count))
    return torch.stack(rows)


def segment_weights(features: Tensor, segments: list[int], tau: float, alpha: float, beta: float) -> Tensor:
    """`sigmoid(tau * (alpha * z(distance from the video) + beta * z(entropy of the spectrum)))` of every segment: float64 `(K,)`, larger = more tokens."""
    slices = frame_slices(segments)
    means = torch.stack([features[frames].float().mean((0, 1)) for frames in slices])
    lengths = torch.tensor(segments, dtype=torch.float32, device=features.device)[:, None]
    video = (means * lengths).sum(0) / lengths.sum()
    distance = 1 - cosine_similarity(means, video[None], dim=-1)
    score = alpha * standardised(distance)
    if beta:
        entropies = torch.stack([spectral_entropy(features[frames].flatten(0, 1)) for frames in slices])
        score = score + beta * standardised(entropies)
    return (tau * score).sigmoid()


def standardised(values: Tensor) -> Tensor:
    """z-scores in float64 of values `(K,)`; 0 where they are equal up to rounding."""
    values = values.double()
    spread = values.std(correction=0)
    return torch.where(spread > _EQUAL, (values - values.mean()) / spread, 0.0)


@torch.no_grad()
def spectral_entropy(tokens: Tensor) -> Tensor:
    """Entropy of the squared singular values' shares over its largest possible: `(M, D)` to a float32 scalar in [0, 1].

    From the eigenvalues of the smaller of the two products of `tokens` with itself.
    """
    tokens = tokens.float()
    product = tokens @ tokens.T if len(tokens) <= tokens.shape[1] else tokens.T @ tokens
    if len(product) == 1:
        return product.new_zeros(())
    energies = torch.linalg.eigvalsh(product).clamp(min=0)
    shares = energies / energies.sum().clamp(min=torch.finfo(energies.dtype).tiny)
    return torch.special.entr(shares).sum() / torch.tensor(len(product), dtype=torch.float32).log()


@torch.no_grad()
def merge_once(
    features: Tensor,
    saliency: Tensor,
    is_static: Tensor,
    segments: list[int],
    salient: Tensor,
    context: Tensor,
    penalty: float = 12.0,
    own_weight: float = 0.6,
    num_neighbours: int = 4,
) -> Merged:
    """As `fastvid.merge`, with static places that are salient, or centres, in one frame of a segment rather than in several.

    Args:
        features: `(T, P, D)`.
        saliency: `(T, P)`, larger = keep.
        is_static: bool `(K, P)`, of every segment.
        segments: lengths in frames.
        salient: int64 `(T,)` on the CPU, how many a frame.
        context: likewise; a frame with some is an anchor.
        penalty: in standard deviations of a frame's saliency.
        own_weight: least weight of a centre's own token.
        num_neighbours: nearest tokens that a density is taken over.
    """
    features = features.float()
    device = features.device
    counts = salient.to(device)
    is_salient, once = [], features.clone()
    for static, frames in zip(is_static, frame_slices(segments), strict=True):
        taken = torch.zeros_like(static)
        mean = features[frames].mean(0)
        for frame in range(frames.start, frames.stop):
            lowered = saliency[frame] - penalty * saliency[frame].std(correction=0)
            chosen = top_tokens(torch.where(taken, lowered, saliency[frame]), counts[frame])
            taken |= chosen & static
            once[frame] = torch.where(taken[:, None], mean, features[frame])
            is_salient.append(chosen)
    chosen = torch.stack(is_salient)

    anchors = context.nonzero()[:, 0].tolist()
    valid = ~chosen[anchors]
    score = peak_scores(once[anchors], valid, num_neighbours)
    order, many = {frame: i for i, frame in enumerate(anchors)}, context[anchors].to(device)
    centres = torch.zeros_like(valid)
    for static, frames in zip(is_static, frame_slices(segments), strict=True):
        taken = torch.zeros_like(static)
        for row in (order[frame] for frame in range(frames.start, frames.stop) if frame in order):
            one = slice(row, row + 1)
            centres[one] = best_of(score[one], many[one], ~taken[None], valid[one])
            taken |= centres[row] & static
    return merge_into(once, chosen, centres, segments, context, own_weight)
