"""FastVID: segments of like frames, salient tokens of every frame, and the rest merged into anchors' densest tokens (NeurIPS 2025, arXiv 2503.11187)."""

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
class FastVid(Compressor):
    """Keep each frame's most salient tokens; merge the others of a segment into the densest ones of its anchor frames; blind to the question.

    Saliency is the attention of the frame's mean query in the vision tower, and a frame's vector the mean of its tokens, as in the authors'
    Qwen2.5-VL code for both families: the pooling head that their LLaVA-OneVision code loads again is in no checkpoint of the stock model.
    The rest follows the LLaVA-OneVision code for both (their other code has threshold 0.84 and skips near-equal frames). Departures: with
    `exact_count` the remainders that the published split loses go to anchors, and what these cannot hold to more salient tokens; density
    ties go by index instead of random jitter.

    Args:
        min_segments: at least so many segments (published c).
        threshold: cosine of neighbouring frames below which a segment ends (published tau).
        context_share: part of the budget for merged tokens (published d).
        anchor_stride: every so-many-th frame of a segment is an anchor, counted from its last (published p).
        beta: least weight of an anchor's own token in the merge.
        num_neighbours: nearest tokens that a density is taken over.
        exact_count: False for the published count, `max(1, int(P * ratio))` a frame less remainders.
    """

    min_segments: int = 8
    threshold: float = 0.9
    context_share: float = 0.4
    anchor_stride: int = 4
    beta: float = 0.6
    num_neighbours: int = 4
    exact_count: bool = True

    name = "fastvid"
    reads_tower = True

    def __post_init__(self):
        if not 0 <= self.context_share <= 1:
            raise ValueError(
                f"context_share={self.context_share!r} is outside [0, 1]: give the part of the budget for merged tokens."
            )
        if self.anchor_stride < 1 or self.min_segments < 1:
            raise ValueError(
                f"anchor_stride={self.anchor_stride!r} and min_segments={self.min_segments!r} must be at least 1."
            )
        check_count("num_neighbours", self.num_neighbours)

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Merged:
        """`merge` within segments, the budget split evenly over frames."""
        features = prompt.video_features(span)
        segments = segment_lengths(features.float().mean(1), self.min_segments, self.threshold)
        if budget is not None:
            a_frame = even_counts(budget, span.num_frames)
        else:
            a_frame = torch.full((span.num_frames,), max(1, int(span.tokens_per_frame * retention_ratio)))
        salient, context = frame_counts(
            a_frame, segments, span.tokens_per_frame, self.context_share, self.anchor_stride, self.exact_count
        )
        saliency = prompt.tower_attention(span).of_mean_query()
        return merge(features, saliency, segments, salient, context, self.beta, self.num_neighbours)


def context_tokens(a_frame: Tensor, context_share: float) -> Tensor:
    """How many of the tokens kept a frame, int64 `(T,)`, are context tokens: their share, rounded down in every frame."""
    return (a_frame * context_share + 1e-9).long()


def frame_counts(
    a_frame: Tensor,
    segments: list[int],
    tokens_per_frame: int,
    context_share: float,
    anchor_stride: int,
    exact: bool,
    totals: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Salient and context tokens of every frame, int64 `(T,)` on the CPU: context tokens of a segment are split evenly over its anchors.

    Args:
        a_frame: int64 `(T,)` on the CPU, tokens kept a frame on the average.
        segments: lengths in frames.
        tokens_per_frame: `P`.
        context_share: part of them that are context tokens, rounded down in every frame.
        anchor_stride: every so-many-th frame, counted from a segment's last, is an anchor.
        exact: whether all add up to `a_frame.sum()`; otherwise remainders are lost, and what an anchor cannot hold.
        totals: context tokens of every segment; None: those of its frames.
    """
    of_context = context_tokens(a_frame, context_share)
    salient, context = a_frame - of_context, torch.zeros_like(a_frame)
    slices = frame_slices(segments)
    for frames, total in zip(slices, totals or [int(of_context[part].sum()) for part in slices], strict=True):
        anchors = torch.arange(frames.stop - 1, frames.start - 1, -anchor_stride)
        share = even_counts(total, len(anchors)) if exact else torch.full_like(anchors, total // len(anchors))
        context[anchors] = share.minimum(tokens_per_frame - salient[anchors])
    if exact:
        room = tokens_per_frame - salient - context
        salient = salient + apportion(room, int(a_frame.sum() - salient.sum() - context.sum()), room)
    return salient, context


@torch.no_grad()
def merge(
    features: Tensor,
    saliency: Tensor,
    segments: list[int],
    salient: Tensor,
    context: Tensor,
    beta: float = 0.6,
    num_neighbours: int = 4,
) -> Merged:
    """Keep salient tokens as they are; merge all others of a segment into the context tokens of each of its anchors.

    A context token becomes `w * itself + (1 - w) * mean of the tokens most like it by cosine (itself among them)`, `w = max(1 / (n + 1), beta)`.

    Args:
        features: `(T, P, D)`.
        saliency: `(T, P)`, larger = keep.
        segments: lengths in frames.
        salient: int64 `(T,)` on the CPU, how many a frame.
        context: likewise; a frame with some is an anchor.
        beta: least weight of the token itself.
        num_neighbours: nearest tokens that a density is taken over.
    """
    features = features.float()
    device = features.device
    is_salient = top_tokens(saliency, salient.to(device))
    anchors = context.nonzero()[:, 0].tolist()
    densest, _ = density_peaks(features[anchors], ~is_salient[anchors], context[anchors].to(device), num_neighbours)
    return merge_into(features, is_salient, densest, segments, context, beta)


def merge_into(
    features: Tensor, is_salient: Tensor, densest: Tensor, segments: list[int], context: Tensor, beta: float
) -> Merged:
    """Return the merge itself, into centres that are chosen.

    Args:
        features: float32 `(T, P, D)`.
        is_salient: bool `(T, P)`, tokens kept as they are.
        densest: bool `(A, P)`, the centres of every anchor, a frame with context tokens.
        segments: lengths in frames.
        context: int64 `(T,)` on the CPU, how many centres a frame has.
        beta: least weight of a centre's own token.
    """
    anchors = context.nonzero()[:, 0].tolist()
    units = normalize(features, dim=-1)
    keep, out = is_salient.clone(), features.clone()
    order = {frame: i for i, frame in enumerate(anchors)}
    for frames in frame_slices(segments):
        tokens, others = features[frames].flatten(0, 1), ~is_salient[frames].flatten()
        for frame in (f for f in range(frames.start, frames.stop) if f in order):
            count = int(context[frame])
            centres = densest[order[frame]]
            places = (~centres).sort(stable=True).indices[:count]
            nearest = (units[frames].flatten(0, 1) @ units[frame, places].T).argmax(1)
            means, sizes = group_means(tokens, torch.where(others, nearest, count), count)
            weight = (1 / (sizes + 1)).clamp(min=beta)[:, None]
            weight = torch.where(sizes[:, None] > 0, weight, 1.0)
            out[frame, places] = weight * features[frame, places] + (1 - weight) * means
            keep[frame] |= centres
    return Merged(keep, out)
