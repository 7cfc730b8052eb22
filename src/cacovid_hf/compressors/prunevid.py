"""PruneVID: tokens that stand still merged over time, then like tokens merged in space (ACL 2025, arXiv 2412.16117)."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Merged, Scores
from .tools.counts import apportion
from .tools.density_peaks import density_peaks, group_means
from .tools.ranges import check_count, check_range
from .tools.segments import frame_slices

# Sets of at most so many tokens are not merged in space by the published rule.
_SMALL = 14


@dataclass(frozen=True)
class PruneVid(Compressor):
    """Merge what is static within a window of frames, then merge each window's static and each frame's other tokens by clusters; blind to the question.

    The half before the language model. The published second half drops merged tokens by the question's attention in layer 10; here the
    whole budget is spent before the language model. Departures: with `exact_count` clusters are shared out in proportion to the sets' sizes,
    instead of half of every set above 14 tokens, and so that the budget can be met, the stillest positions alone are merged over time; density
    ties go by index instead of random jitter; a merged token stands at its cluster centre's place (a static one's in the window's first
    frame), instead of static tokens before the others; original positions.

    Args:
        static_threshold: mean cosine over a window above which a position is static (published tau); larger = less is merged over time.
        temporal_share: clusters of frames, as a share of the frames (published temporal_segment_ratio).
        cluster_share: clusters of a set's tokens where `exact_count` is False (published cluster_ratio).
        num_neighbours: nearest tokens that a density is taken over.
        exact_count: False for the published count: the content and `cluster_share` decide, and `retention_ratio` does not.
    """

    static_threshold: float = 0.8
    temporal_share: float = 0.25
    cluster_share: float = 0.5
    num_neighbours: int = 7
    exact_count: bool = True

    name = "prunevid"

    def __post_init__(self):
        check_range("static_threshold", self.static_threshold, -1, 1)
        check_range("temporal_share", self.temporal_share, 0, 1)
        check_range("cluster_share", self.cluster_share, 0, 1)
        check_count("num_neighbours", self.num_neighbours)

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int | None) -> Merged:
        """`merge` within windows; without a budget by the published count."""
        features = prompt.video_features(span)
        windows = window_lengths(features.float().mean(1), self.temporal_share, self.num_neighbours)
        return merge(
            features,
            windows,
            budget,
            static_threshold=self.static_threshold,
            cluster_share=self.cluster_share,
            num_neighbours=self.num_neighbours,
        )


def window_lengths(frame_vectors: Tensor, share: float = 0.25, num_neighbours: int = 7) -> list[int]:
    """Windows of like frames: clusters of the frame vectors `(T, C)` by density peaks, made contiguous; lengths in order."""
    frames = len(frame_vectors)
    valid = torch.ones(1, frames, dtype=torch.bool, device=frame_vectors.device)
    _, labels = density_peaks(frame_vectors[None], valid, max(1, int(share * frames)), num_neighbours)
    return [len(list(run)) for _, run in groupby(contiguous(labels[0].tolist()))]


def contiguous(labels: list[int]) -> list[int]:
    """Keep the longest runs of every label that are longer than one; a stretch in between goes to its longer neighbour run, the left at ties.

    Without any run that is kept, all labels are 0.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest: dict[int, int] = {}
    for label, length in runs:
        longest[label] = max(length, longest.get(label, 0))
    kept = [label if length == longest[label] > 1 else None for label, length in runs]
    stretches = [
        (label, sum(length for _, (_, length) in group) if label is None else 0, [length for _, (_, length) in group])
        for label, group in ((k, list(g)) for k, g in groupby(zip(kept, runs, strict=True), key=lambda pair: pair[0]))
    ]
    found: list[int] = []
    for i, (label, dropped, lengths) in enumerate(stretches):
        if label is not None:
            found += [label] * sum(lengths)
            continue
        left = stretches[i - 1] if i else None
        right = stretches[i + 1] if i + 1 < len(stretches) else None
        left_length, right_length = left[2][-1] if left else 0, right[2][0] if right else 0
        neighbour = left if left_length >= right_length else right
        found += [0 if neighbour is None else neighbour[0] or 0] * dropped
    return found


def stillness(features: Tensor, windows: list[int]) -> Tensor:
    """Mean cosine of all pairs of frames at every position of every window: `(T, P, D)` to float32 `(W, P)`, -inf in windows of one frame."""
    member = _members(windows, features.device)
    units = normalize(features.float(), dim=-1)
    sums = (member @ units.flatten(1)).view(len(windows), *features.shape[1:])
    length = member.sum(1, keepdim=True)
    pairs = (length * (length - 1)).clamp(min=1)
    return ((sums.square().sum(-1) - length) / pairs).masked_fill(length == 1, -torch.inf)


def _members(windows: list[int], device: torch.device) -> Tensor:
    """Which frames are in which window: float32 `(W, T)`."""
    lengths = torch.tensor(windows)
    ids = torch.arange(len(windows)).repeat_interleave(lengths)
    return (torch.arange(len(windows))[:, None] == ids).float().to(device)


@torch.no_grad()
def merge(
    features: Tensor,
    windows: list[int],
    budget: int | None,
    *,
    static_threshold: float = 0.8,
    cluster_share: float = 0.5,
    num_neighbours: int = 7,
) -> Merged:
    """Merge over time, then in space.

    Args:
        features: `(T, P, D)`.
        windows: lengths in frames, summing to `T`.
        budget: number of tokens left, in [1, T * P]; None: as published, `int(cluster_share * M)` of each set of `M > 14` tokens, all of smaller ones.
        static_threshold: see `PruneVid`.
        cluster_share: see `PruneVid`.
        num_neighbours: see `PruneVid`.
    """
    frames, size, width = features.shape
    device = features.device
    member = _members(windows, device)
    still = stillness(features, windows)
    static = still > static_threshold
    if budget is not None:
        # The stillest first, as long as enough tokens are left.
        order = still.masked_fill(~static, -torch.inf).flatten().sort(descending=True, stable=True).indices
        saved = (static * (member.sum(1, keepdim=True) - 1)).flatten()[order].cumsum(0)
        static = static & torch.empty_like(static.flatten()).scatter_(
            0, order, saved <= frames * size - budget
        ).view_as(static)

    # A window's static tokens are one set, a frame's others another.
    means = (member @ features.float().flatten(1)).view(len(windows), size, width) / member.sum(1)[:, None, None]
    window_of = member.argmax(0)
    sets = torch.cat([means, features.float()])
    valid = torch.cat([static, ~static[window_of]])
    sizes = valid.sum(1)
    if budget is not None:
        counts = apportion(sizes, budget, sizes)
    else:
        counts = torch.where(sizes > _SMALL, (sizes * cluster_share).long(), sizes)
    centres, nearest = density_peaks(sets, valid, counts, num_neighbours)
    row = torch.arange(len(sets), device=device)[:, None]
    group = torch.where(valid & (counts[:, None] > 0), row * size + nearest, len(sets) * size)
    merged = group_means(sets.flatten(0, 1), group.flatten(), len(sets) * size)[0].view_as(sets)

    first = torch.tensor([part.start for part in frame_slices(windows)], device=device)
    count = len(windows)
    keep, out = centres[count:].clone(), merged[count:].clone()
    keep[first] |= centres[:count]
    out[first] = torch.where(centres[:count, :, None], merged[:count], out[first])
    return Merged(keep, out)
