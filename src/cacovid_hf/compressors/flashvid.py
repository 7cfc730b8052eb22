"""FlashVID: diverse attended tokens of every frame, and the rest merged along trees over time, then in space (ICLR 2026, arXiv 2602.08024)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Merged, Scores
from .tools.counts import apportion, even_counts
from .tools.density_peaks import density_peaks, group_means
from .tools.ranges import check_count
from .tools.segments import frame_slices, segment_lengths
from .tools.tokens import top_tokens


@dataclass(frozen=True)
class FlashVid(Compressor):
    """Keep each frame's most diverse tokens, weighed by attention; merge the others over time and in space; blind to the question.

    The half before the language model. The published method keeps a quarter more there and drops most of it at layer 20 again; here the whole
    budget is spent before the language model. Departures: exact budget, split evenly over frames, clusters shared out in proportion to
    what is left of the frames; no token picked twice; density ties go by index instead of random jitter; original positions.

    Args:
        segment_threshold: cosine of neighbouring frames below which a segment ends.
        min_segments: at least so many segments (published: 8, for Qwen2.5-VL 4).
        diverse_share: part of the budget for the tokens kept as they are (published alpha), rounded up in every frame.
        merge_threshold: cosine above which a token joins one of the frame before (published T_tau); larger = less is merged over time.
        relevance: whether diversity is also weighed by likeness to the segment's mean (published `attn_div_v2`, for LLaVA; False is
            `attn_div`, for Qwen2.5-VL).
        num_neighbours: nearest tokens that a density is taken over, at most as many as clusters.
    """

    segment_threshold: float = 0.9
    min_segments: int = 8
    diverse_share: float = 0.7
    merge_threshold: float = 0.8
    relevance: bool = True
    num_neighbours: int = 7

    name = "flashvid"
    reads_tower = True

    def __post_init__(self):
        if not 0 <= self.diverse_share <= 1:
            raise ValueError(
                f"diverse_share={self.diverse_share!r} is outside [0, 1]: give the part of the budget kept unmerged."
            )
        if self.min_segments < 1:
            raise ValueError(f"min_segments={self.min_segments!r} must be at least 1.")
        check_count("num_neighbours", self.num_neighbours)

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Merged:
        """Diverse tokens, then the merged rest."""
        features = prompt.video_features(span)
        segments = segment_lengths(features.float().mean(1), self.min_segments, self.segment_threshold)
        counts = even_counts(budget, span.num_frames)
        diverse = (counts * self.diverse_share - 1e-9).ceil().long().clamp(min=0)
        weights = prompt.tower_attention(span).received()
        if self.relevance:
            weights = weights * relevance(features, segments)
        keep = diverse_tokens(features, weights, diverse)
        return merge_rest(features, keep, segments, counts - diverse, self.merge_threshold, self.num_neighbours)


def relevance(features: Tensor, segments: list[int]) -> Tensor:
    """Dot product of every token with the mean of its segment: `(T, P, D)` to float32 `(T, P)`."""
    features = features.float()
    means = features.mean(1)
    of_segment = torch.cat([means[frames].mean(0).expand_as(means[frames]) for frames in frame_slices(segments)])
    return (features @ of_segment[..., None])[..., 0]


@torch.no_grad()
def diverse_tokens(features: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Max-min selection in every frame, a token's cosine distance to any other times its weight.

    Args:
        features: `(T, P, D)`.
        weights: `(T, P)`, larger = keep.
        counts: int64 `(T,)` on the CPU, how many a frame.

    Returns:
        bool `(T, P)`.
    """
    frames, size = features.shape[:2]
    units = normalize(features.float(), dim=-1)
    distance = (1 - units @ units.mT) * weights.float()[:, None, :]  # [t, i, j]: from i to candidate j
    pick = distance.topk(min(2, size), dim=1, largest=False).values[:, -1].argmax(1, keepdim=True)
    score = torch.full((frames, size), torch.inf, device=features.device)
    keep = torch.zeros(frames, size, dtype=torch.bool, device=features.device)
    for step in range(int(counts.max())):
        keep |= torch.zeros_like(keep).scatter_(1, pick, (counts > step).to(keep.device)[:, None])
        to_pick = distance.gather(1, pick[..., None].expand(-1, -1, size))[:, 0]
        score = score.minimum(to_pick).scatter(1, pick, -torch.inf)
        pick = score.argmax(1, keepdim=True)
    return keep


@torch.no_grad()
def merge_rest(
    features: Tensor,
    keep: Tensor,
    segments: list[int],
    counts: Tensor,
    threshold: float = 0.8,
    num_neighbours: int = 7,
) -> Merged:
    """Merge what is not kept: over time along trees of like tokens within a segment, then what remains of each frame into clusters.

    A token joins the token of the frame before that it is most like, wherever that is, if their cosine is above the threshold; the likest first
    where fewer tokens than the budget would remain. A tree becomes its mean, at its root; a cluster the mean of its roots, at its centre.

    Args:
        features: `(T, P, D)`.
        keep: bool `(T, P)`, tokens that stay as they are.
        segments: lengths in frames.
        counts: int64 `(T,)` on the CPU, tokens that the rest is merged into; of a segment, their sum counts.
        threshold: see above.
        num_neighbours: nearest tokens that a density is taken over, at most as many as clusters.
    """
    features = features.float()
    frames, size, width = features.shape
    device = features.device
    units = normalize(features, dim=-1)
    similarity = (units[1:] @ units[:-1].mT).masked_fill(keep[:-1, None], -1)  # (T - 1, P, P), to the frame before
    likest, parent = similarity.max(-1)
    likest = torch.cat([likest.new_full((1, size), -1), likest]).masked_fill(keep, -1)
    parent = torch.cat([parent.new_zeros(1, size), parent])

    free, clusters = (~keep).sum(1), torch.zeros(frames, dtype=torch.long, device=device)
    joins = torch.zeros_like(keep)
    for part in frame_slices(segments):
        total = int(counts[part].sum())
        inside = likest[part].clone()
        inside[0] = -1
        most = free[part].sum() - total
        joins[part] = (inside > threshold) & top_tokens(inside.flatten(), most).view_as(inside)
        remaining = (~keep[part] & ~joins[part]).sum(1)
        clusters[part] = apportion(remaining, total, remaining)

    place = torch.arange(frames * size, device=device).view(frames, size)
    frame = torch.arange(frames, device=device)[:, None]
    root = torch.where(joins, (frame - 1) * size + parent, place).flatten()
    for _ in range(max(1, frames - 1).bit_length()):
        root = root[root]
    trees = group_means(features.flatten(0, 1), torch.where(keep.flatten(), frames * size, root), frames * size)[0]

    roots = ~keep & ~joins
    centres, nearest = density_peaks(
        trees.view_as(features), roots, clusters, clusters.clamp(min=1, max=num_neighbours)
    )
    group = torch.where(roots & (clusters[:, None] > 0), frame * size + nearest, frames * size)
    merged = group_means(trees, group.flatten(), frames * size)[0].view(frames, size, width)
    return Merged(keep | centres, torch.where(centres[..., None], merged, features))
