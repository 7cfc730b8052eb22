"""The two baselines that look at nothing: tokens spread evenly, and tokens drawn at random."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..prompt import Prompt, VideoSpan
from .base import Compressor, ScoreCompressor, Scores
from .tools.tokens import spread_tokens


@dataclass(frozen=True)
class Uniform(Compressor):
    """Every k-th token in raster order."""

    name = "uniform"

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """Evenly spaced over space and time."""
        nothing = torch.zeros(span.num_tokens, dtype=torch.bool, device=prompt.inputs_embeds.device)
        return spread_tokens(nothing, 0, budget).view(span.num_frames, span.tokens_per_frame)


@dataclass(frozen=True)
class Random(ScoreCompressor):
    """A random subset; the same seed gives the same tokens on any device, for every video of the same size.

    Args:
        seed: of the draw.
    """

    seed: int = 0

    name = "random"

    def score_tokens(self, prompt: Prompt, span: VideoSpan) -> Tensor:
        """`T * P` random numbers."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(span.num_frames, span.tokens_per_frame, generator=generator)
        return draw.to(prompt.inputs_embeds.device)
