"""StreamingTOM's causal temporal reduction: what changed by attention, what did not by clusters (CVPR 2026, arXiv 2510.18269)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Merged, Scores
from .tools.counts import even_counts
from .tools.density_peaks import density_peaks, group_means
from .tools.tokens import top_tokens


@dataclass(frozen=True)
class StreamingTom(Compressor):
    """Of each frame keep the changed tokens that the vision tower attends to, and clusters of those that did not change; blind to the question.

    The causal reduction alone (CTR), without the quantised memory of the same paper. A frame needs nothing of the video but the frame before.
    Read from the authors' code: all steps and settings. Attention is that of the layer that the features come from, for Qwen2.5-VL too, as in `visionzip`.
    Departures: in the code an inverted mask sets centres far from less dense tokens. Here they are far from denser ones, which is the rule of density peaks.
    Ties go by index instead of random jitter. The budget is exact and split evenly over frames (published: 50 of 196 tokens in each).

    Args:
        threshold: cosine to the token at the same place in the frame before, above which a token did not change.
        own_weight: weight of a centre's own token in its cluster (published beta).
        num_neighbours: nearest tokens that a density is taken over, less than a frame's unchanged tokens.
    """

    threshold: float = 0.9
    own_weight: float = 0.6
    num_neighbours: int = 7

    name = "streamingtom"
    reads_tower = True

    def __post_init__(self):
        if not 0 <= self.own_weight <= 1:
            raise ValueError(f"own_weight={self.own_weight!r} is outside [0, 1]: give the weight of a centre's token.")
        if self.num_neighbours < 1:
            raise ValueError(f"num_neighbours={self.num_neighbours!r} must be at least 1.")

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Merged:
        """`reduce_frames` with even counts."""
        attention = prompt.tower_attention(span).received()
        counts = even_counts(budget, span.num_frames)
        settings = (self.threshold, self.own_weight, self.num_neighbours)
        return reduce_frames(prompt.video_features(span), attention, counts, *settings)


@torch.no_grad()
def reduce_frames(
    features: Tensor,
    attention: Tensor,
    counts: Tensor,
    threshold: float = 0.9,
    own_weight: float = 0.6,
    num_neighbours: int = 7,
    before: Tensor | None = None,
) -> Merged:
    """Reduce every frame by itself and the frame before it, uncompressed.

    A frame's unchanged tokens get `floor(count * unchanged / P)` clusters, and its changed ones the rest of the count. Without a cluster all unchanged
    tokens go. A cluster becomes `own_weight` of its centre and the rest of the mean of its other tokens; a centre alone stays as it is.

    Args:
        features: `(T, P, D)`.
        attention: `(T, P)`, larger = keep.
        counts: int64 `(T,)` on the CPU, tokens kept of every frame, at most `P`.
        threshold: see `StreamingTom`.
        own_weight: likewise.
        num_neighbours: likewise.
        before: `(P, D)`, the frame before the first; None: there is none, and all of the first is change.
    """
    features = features.float()
    frames, size = features.shape[:2]
    past = features[:-1] if before is None else torch.cat([before.to(features)[None], features[:-1]])
    like = cosine_similarity(features[frames - len(past) :], past, dim=-1) > threshold
    static = torch.cat([like.new_zeros(frames - len(past), size), like])
    total = counts.to(features.device)
    unchanged = static.sum(1)
    clusters = total * unchanged // size
    dynamic = top_tokens(attention.float().masked_fill(static, -torch.inf), total - clusters)
    near = (unchanged - 1).clamp(min=1, max=num_neighbours)
    centres, nearest = density_peaks(features, static, clusters, near)
    frame = torch.arange(frames, device=features.device)[:, None]
    others = static & ~centres & (clusters[:, None] > 0)
    group = torch.where(others, frame * size + nearest, frames * size)
    means, sizes = group_means(features.flatten(0, 1), group.flatten(), frames * size)
    mixed = own_weight * features + (1 - own_weight) * means.view_as(features)
    is_mixed = (centres & (sizes.view(frames, size) > 0))[..., None]
    return Merged(dynamic | centres, torch.where(is_mixed, mixed, features))
