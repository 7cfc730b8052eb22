"""V-CAST: frames by the curvature of the video's path, tokens by difference and size (arXiv 2603.27650)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Scores
from .tools.counts import apportion
from .tools.ranges import check_temperature
from .tools.tokens import top_tokens


@dataclass(frozen=True)
class VCast(Compressor):
    """Keep more of the frames where the video turns, and in a frame the tokens unlike its mean and large; blind to the question.

    Departures from the published code: `floor(ratio * N)` tokens instead of `round(ratio * N)`; with fewer tokens than frames those that turn most
    get one; every row of a batch is compressed, where the published code switches itself off.

    Args:
        temperature: of the softmax over frames; larger = more even.
    """

    temperature: float = 0.7

    name = "vcast"

    def __post_init__(self):
        check_temperature(self.temperature)

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """Return the most distinct tokens of every frame."""
        features = prompt.video_features(span).float()
        weights = (curvature(features) / self.temperature).softmax(0)
        least = int(budget >= span.num_frames)
        more = apportion(weights, budget - least * span.num_frames, span.tokens_per_frame - least)
        return top_tokens(distinctness(features), least + more)


def frame_directions(features: Tensor) -> Tensor:
    """Normalised mean of every frame's tokens: `(T, P, D)` to `(T, D)`."""
    return normalize(features.mean(1), dim=-1)


def curvature(features: Tensor) -> Tensor:
    """One minus the cosine between the steps into and out of every frame: `(T, P, D)` to `(T,)` in [0, 2], 1 at both ends."""
    steps = frame_directions(features).diff(dim=0)
    inner = 1 - cosine_similarity(steps[:-1], steps[1:], dim=-1)
    return torch.ones(len(features), device=features.device).index_copy(
        0, torch.arange(1, 1 + len(inner), device=features.device), inner
    )


def distinctness(features: Tensor) -> Tensor:
    """Cosine distance to the frame's mean plus the norm, scaled to [0, 1] within the frame: `(T, P, D)` to `(T, P)`, larger = keep."""
    unlike = 1 - cosine_similarity(features, frame_directions(features)[:, None], dim=-1)
    size = features.norm(dim=-1)
    low, high = size.amin(1, keepdim=True), size.amax(1, keepdim=True)
    return unlike + (size - low) / (high - low).clamp(min=1e-12)
