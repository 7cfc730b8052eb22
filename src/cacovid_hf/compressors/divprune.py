"""DivPrune: the most diverse subset of a video's tokens, by farthest points (arXiv 2503.02175, "DivPrune")."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Scores

# Rows of all-pairs similarities that are held at once for the first pick.
_ROWS = 512


@dataclass(frozen=True)
class DivPrune(Compressor):
    """Keep tokens that are far from one another, the whole video one pool; blind to the question.

    Departures from the published code: exactly `max(1, floor(ratio * N))` tokens instead of `round(ratio * N)`, original positions instead
    of new ones, no token picked twice.
    """

    name = "divprune"

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """`farthest_points` of all the video's tokens."""
        features = prompt.video_features(span)
        picked = farthest_points(features.flatten(0, 1), budget)
        keep = torch.zeros(span.num_tokens, dtype=torch.bool, device=features.device)
        return keep.index_fill_(0, picked, True).view(features.shape[:2])


@torch.no_grad()
def farthest_points(features: Tensor, count: int) -> Tensor:
    """Max-min selection under cosine distance: first the token farthest from its nearest other, then always the one farthest from those picked.

    The published loop looks at all picked tokens again in every step, `O(count^2 N)` in a matrix of all pairs; a running minimum gives the same
    picks in `O(count N)` without the matrix. The first pick compares all pairs once, some rows at a time. Ties go to the lower index.

    Args:
        features: `(N, D)`.
        count: how many to pick, in [1, N].

    Returns:
        int64 `(count,)`, in the order of picking.
    """
    if not 1 <= count <= len(features):
        raise ValueError(
            f"count={count} is outside [1, {len(features)}]: there are {len(features)} tokens to pick from."
        )
    units = normalize(features.float(), dim=-1)
    nearest = [_nearest_other(units, start) for start in range(0, len(units), _ROWS)]
    pick = torch.cat(nearest).argmax()
    distance = torch.full((len(units),), torch.inf, device=units.device)
    picks = []
    for _ in range(count):
        picks.append(pick)
        distance = torch.minimum(distance, 1 - units @ units.index_select(0, pick[None])[0])
        distance.index_fill_(0, pick[None], -torch.inf)
        pick = distance.argmax()
    return torch.stack(picks)


def _nearest_other(units: Tensor, start: int) -> Tensor:
    """Cosine distance to the nearest other token, of the tokens from `start` on: `(rows,)`."""
    similarity = units[start : start + _ROWS] @ units.T
    similarity.diagonal(start).fill_(-torch.inf)
    return 1 - similarity.amax(1)
