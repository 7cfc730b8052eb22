"""SimpleCluster: spherical k-means over all tokens of a video at once, positions turned into their directions (Zhang et al., 2026)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Merged, Scores
from .tools.density_peaks import group_means

OUTPUTS = ("mean", "nearest")
# Elements of one block of similarities: 128 MiB of float32.
_BLOCK = 1 << 25


@dataclass(frozen=True)
class SimpleCluster(Compressor):
    """Cluster all tokens of the video into exactly the budget, and keep the mean of every cluster; blind to the question, reads no attention.

    Published: tokens are compared by the cosine of their rotated, normalised features, channels in three groups for time, height and width. A cluster
    becomes the mean of its own tokens, not rotated.
    Derived by us, as the paper does not say: the first centres are tokens at evenly spaced places, and rounds are counted. An empty cluster takes the token
    that its own cluster serves worst. Halves of a group are rotated against each other. A cluster stands at the place of its token nearest to the centre.

    Args:
        rounds: of k-means; more = closer to its end.
        theta: base of the rotation's frequencies (published: 10000).
        rotate: whether positions count (published; without it 0.7 points less in the paper's ablation at 10 %).
        output: `"mean"` of a cluster (published), or its `"nearest"` token to the centre, which merges nothing.
    """

    rounds: int = 10
    theta: float = 10000.0
    rotate: bool = True
    output: str = "mean"

    name = "simplecluster"

    def __post_init__(self):
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"rounds={self.rounds!r}: give a whole number of rounds, at least 1.")
        if self.output not in OUTPUTS:
            raise ValueError(f"output={self.output!r} is unknown: choose one of {', '.join(map(repr, OUTPUTS))}.")

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor | Merged:
        """Return the clusters' means, each at one of its tokens' places."""
        features = prompt.video_features(span).float().flatten(0, 1)
        turned = rotated(features, span.grid, self.theta) if self.rotate else features
        cluster, place = spherical_means(normalize(turned, dim=-1), budget, self.rounds)
        keep = torch.zeros(span.num_tokens, dtype=torch.bool, device=features.device).index_fill_(0, place, True)
        keep = keep.view(span.num_frames, span.tokens_per_frame)
        if self.output == "nearest":
            return keep
        means, _ = group_means(features, cluster, budget)
        return Merged(keep, features.index_copy(0, place, means).unflatten(0, keep.shape))


def rotated(features: Tensor, grid: tuple[int, int, int], theta: float = 10000.0) -> Tensor:
    """Features `(T * h * w, D)` turned by their positions: a third of the channels each by time, height and width, in pairs; channels left over stay."""
    width = features.shape[-1] // 6 * 2
    places = torch.cartesian_prod(*(torch.arange(size, device=features.device) for size in grid)).view(-1, 3)
    parts = []
    for axis in range(3):
        first, second = features[:, axis * width : (axis + 1) * width].chunk(2, dim=-1)
        exponents = torch.arange(width // 2, device=features.device) / max(1, width // 2)
        angles = places[:, axis, None] * theta**-exponents
        cos, sin = angles.cos(), angles.sin()
        parts += [first * cos - second * sin, first * sin + second * cos]
    return torch.cat([*parts, features[:, 3 * width :]], dim=-1)


@torch.no_grad()
def spherical_means(units: Tensor, count: int, rounds: int) -> tuple[Tensor, Tensor]:
    """k-means by cosine; no cluster is ever empty.

    Args:
        units: `(N, D)`, rows of length 1.
        count: number of clusters, in [1, N].
        rounds: at least 1.

    Returns:
        int64 `(N,)`, the cluster of every token, and int64 `(count,)`, the token of every cluster that is nearest to its centre.
    """
    size = len(units)
    first = torch.arange(count, device=units.device) * size // count
    centres = units[first]
    for _ in range(rounds):
        cluster = _filled(*_nearest(units, centres), count)
        centres = normalize(group_means(units, cluster, count)[0], dim=-1)
    served = _rounded((units * centres[cluster]).sum(-1))
    return cluster, _representatives(cluster, served, count)


def _nearest(units: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cluster of the nearest centre of every token, and how near that is; ties to the lower index."""
    found = [(part @ centres.T).max(-1) for part in units.split(max(1, _BLOCK // len(centres)))]
    return torch.cat([part.indices for part in found]), _rounded(torch.cat([part.values for part in found]))


def _rounded(cosines: Tensor) -> Tensor:
    """Cosines to 16 binary places: the two tokens of a cluster of two are as near to its centre, which rounding must not decide."""
    return (cosines * (1 << 16)).round()


def _filled(cluster: Tensor, served: Tensor, count: int) -> Tensor:
    """Clusters with every empty one given the worst served token that is not the best served of its own."""
    sizes = torch.zeros(count, dtype=torch.long, device=cluster.device)
    sizes.scatter_add_(0, cluster, torch.ones_like(cluster))
    best = _representatives(cluster, served, count, sizes)
    # The place behind the last takes what an empty cluster would mark.
    stays = torch.zeros(len(cluster) + 1, dtype=torch.bool, device=cluster.device)
    stays = stays.index_fill_(0, torch.where(sizes > 0, best, len(cluster)), True)[:-1]
    worst = served.masked_fill(stays, torch.inf).sort(stable=True).indices[:count]
    empty = sizes == 0
    receivers = empty.long().sort(descending=True, stable=True).indices  # empty clusters first
    moves = torch.arange(len(worst), device=cluster.device) < empty.sum()
    return cluster.index_copy(0, worst, torch.where(moves, receivers[: len(worst)], cluster[worst]))


def _representatives(cluster: Tensor, served: Tensor, count: int, sizes: Tensor | None = None) -> Tensor:
    """Return the best served token of every cluster, int64 `(count,)`, ties to the lower index; of an empty cluster nothing is said."""
    if sizes is None:
        sizes = torch.zeros(count, dtype=torch.long, device=cluster.device)
        sizes.scatter_add_(0, cluster, torch.ones_like(cluster))
    order = served.sort(descending=True, stable=True).indices
    order = order[cluster[order].sort(stable=True).indices]
    starts = sizes.cumsum(0) - sizes
    return order[starts.clamp(max=len(order) - 1)]
