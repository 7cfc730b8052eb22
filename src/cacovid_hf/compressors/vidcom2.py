"""VidCom2: frames by how much they differ from the video, tokens by how much they differ from both (EMNLP 2025, arXiv 2505.14454)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Scores
from .tools.counts import apportion
from .tools.ranges import check_range, check_temperature
from .tools.tokens import top_tokens

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


@dataclass(frozen=True)
class VidCom2(Compressor):
    """Keep the tokens least like the centres of the video and of their frame, more of them in unusual frames; blind to the question.

    Departures from the published code: with `exact_count` the frames' shares are rounded by largest remainders to the exact budget (at least one
    a frame where it suffices), instead of each to the nearest integer; every row of a batch is compressed, where the published code switches
    itself off; original positions for both families.

    Args:
        channel_share: part of the channels, those of lowest variance, that tokens are compared by.
        temperature: of the softmax over frames; larger = more even.
        exact_count: False for the published count, which depends on the content and is at least one token a frame.
    """

    channel_share: float = 0.5
    temperature: float = 0.01
    exact_count: bool = True

    name = "vidcom2"

    def __post_init__(self):
        check_range("channel_share", self.channel_share, 0, 1)
        check_temperature(self.temperature)

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Tensor:
        """Return the least typical tokens of every frame."""
        video, frame = typicality(prompt.video_features(span), self.channel_share)
        ratios = frame_ratios(video, retention_ratio, self.temperature)
        if budget is not None:
            counts = apportion(ratios, budget, span.tokens_per_frame, int(budget >= span.num_frames))
        else:
            counts = rounded_counts(ratios, span.tokens_per_frame)
        return top_tokens(-(video + frame), counts)


def quiet_channels(features: Tensor, share: float = 0.5) -> Tensor:
    """Return the `int(share * D)` channels of lowest (population) variance over all tokens `(T, P, D)`: int64, quietest first."""
    variance = features.float().flatten(0, 1).var(0, correction=0)
    return variance.sort(stable=True).indices[: max(1, int(share * features.shape[-1]))]


@torch.no_grad()
def typicality(features: Tensor, channel_share: float = 0.5) -> tuple[Tensor, Tensor]:
    """How like the video's centre, and its frame's, every token is: sums of Gaussians of the distance on normalised quiet channels.

    Args:
        features: `(T, P, D)`.
        channel_share: part of the channels that is compared.

    Returns:
        Two float32 `(T, P)`, in (0, 5]; larger = more typical.
    """
    units = normalize(features.float()[..., quiet_channels(features, channel_share)], dim=-1)
    return _gaussians(units, units.mean((0, 1))), _gaussians(units, units.mean(1, keepdim=True))


def _gaussians(units: Tensor, centre: Tensor) -> Tensor:
    squared = (units - centre).square().sum(-1)
    return torch.stack([(-squared / (2 * width)).exp() for width in WIDTHS]).sum(0)


def frame_ratios(video_typicality: Tensor, retention_ratio: float, temperature: float = 0.01) -> Tensor:
    """Ratio kept of every frame, more where tokens are unlike the video's centre: `(T, P)` to `(T,)`, at most 1."""
    uniqueness = -video_typicality.mean(1)
    weights = ((uniqueness - uniqueness.max()) / temperature).softmax(0)
    return (retention_ratio * (1 + weights - 1 / len(weights))).clamp(max=1.0)


def rounded_counts(ratios: Tensor, tokens_per_frame: int) -> Tensor:
    """Return the published count of every frame: `max(1, round(ratio * P))`, half to even."""
    return (ratios * tokens_per_frame).round().long().clamp(min=1)
