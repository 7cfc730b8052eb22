"""VisionZip: tokens that the vision tower looks at, and the rest merged into a few by the likeness of their keys (arXiv 2412.04467)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Merged, Scores
from .tools.counts import even_counts
from .tools.density_peaks import group_means
from .tools.tokens import top_tokens


@dataclass(frozen=True)
class VisionZip(Compressor):
    """Keep each frame's tokens that receive most attention in the vision tower, and merge the others into contextual tokens; blind to the question.

    SigLIP and Qwen's tower have no CLS token, by whose attention the paper ranks; as in the published ports to them, a token's score is the attention
    that it receives in the layer that the features come from (Qwen: the last that sees whole frames), mean over heads and queries, and features
    are those behind the projector. Departures from the ports: the budget is exact, split evenly over frames; a frame's first token is a
    dominant one; contextual tokens stand at their own places instead of behind the dominant ones; original positions.

    Args:
        dominant_share: part of a frame's tokens chosen by attention (published: 54 of 64); the rest are contextual.
    """

    dominant_share: float = 54 / 64

    name = "visionzip"
    reads_tower = True

    def __post_init__(self):
        if not 0 <= self.dominant_share <= 1:
            raise ValueError(
                f"dominant_share={self.dominant_share!r} is outside [0, 1]: give the part of the tokens chosen by attention."
            )

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Merged:
        """`merge` with even counts."""
        counts = even_counts(budget, span.num_frames)
        dominant = (counts * self.dominant_share + 1e-9).long().clamp(min=1).minimum(counts)
        tower = prompt.tower_attention(span)
        return merge(prompt.video_features(span), tower.received(), tower.mean_keys(), dominant, counts - dominant)


@torch.no_grad()
def merge(features: Tensor, attention: Tensor, metric: Tensor, dominant: Tensor, contextual: Tensor) -> Merged:
    """Keep dominant tokens as they are, and merge every other into the contextual token of its frame that it is most like.

    Contextual tokens are every `step`-th of a frame's others, `step = max(1, others // contextual)`. A contextual token becomes itself **plus** the mean
    of the tokens assigned to it (as published).

    Args:
        features: `(T, P, D)`.
        attention: `(T, P)`, larger = dominant.
        metric: `(T, P, C)`, compared by cosine.
        dominant: int64 `(T,)` on the CPU, how many a frame.
        contextual: likewise.
    """
    frames, size, width = features.shape
    keep = top_tokens(attention, dominant.to(features.device))
    slots = int(contextual.max())
    if slots == 0:
        return Merged(keep, features)
    others, count = ~keep, contextual.to(features.device)[:, None]
    rank = others.cumsum(1) - 1
    step = (others.sum(1, keepdim=True) // count.clamp(min=1)).clamp(min=1)
    target = others & (rank % step == 0) & (rank // step < count)

    places = (~target).sort(dim=1, stable=True).indices[:, :slots]  # (T, slots), targets first
    is_target = target.gather(1, places)
    units = normalize(metric.float(), dim=-1)
    similarity = units @ units.gather(1, places[..., None].expand(-1, -1, units.shape[-1])).mT  # (T, P, slots)
    nearest = similarity.masked_fill(~is_target[:, None], -torch.inf).argmax(-1)
    assigned = others & ~target & (count > 0)
    frame = torch.arange(frames, device=features.device)[:, None]
    group = torch.where(assigned, frame * slots + nearest, frames * slots)
    means, _ = group_means(features.flatten(0, 1), group.flatten(), frames * slots)
    merged = features.float().flatten(0, 1).index_add(0, (frame * size + places).flatten(), means)
    return Merged(keep | target, merged.view(frames, size, width))
