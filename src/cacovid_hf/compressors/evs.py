"""Efficient Video Sampling: tokens that changed since the frame before (arXiv 2510.14624; as in vLLM)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..prompt import Prompt, VideoSpan
from ..ratio import token_budget
from .base import ScoreCompressor, Scores
from .tools.tokens import spread_tokens

# Dissimilarity of the first frame's tokens, above any other.
_FIRST_FRAME = 255.0


@dataclass(frozen=True)
class Evs(ScoreCompressor):
    """Keep the first frame, then the tokens least like those at their place in the frame before; blind to the question.

    Departures from vLLM's code: with `exact_count` the budget is exact where it is below one frame, too, and such a budget is spread evenly over
    the first frame; text positions after the video stay as they are, where vLLM counts on from the grid's width.

    Args:
        exact_count: False for the published count, never below the tokens of one frame.
    """

    exact_count: bool = True

    name = "evs"

    def budget(self, span: VideoSpan, retention_ratio: float) -> int:
        """Exact, or the published rule."""
        if self.exact_count:
            return token_budget(span.num_tokens, retention_ratio)
        return published_count(span.num_frames, span.tokens_per_frame, 1 - retention_ratio)

    def score_tokens(self, prompt: Prompt, span: VideoSpan) -> Tensor:
        """`change`."""
        return change(prompt.video_features(span))

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """Return the largest changes; of a budget below one frame, tokens spread over the first."""
        if budget >= span.tokens_per_frame:
            return super().select(prompt, span, scores, budget)
        nothing = torch.zeros(span.tokens_per_frame, dtype=torch.bool, device=prompt.inputs_embeds.device)
        first = spread_tokens(nothing, 0, budget)
        return torch.cat([first, nothing.repeat(span.num_frames - 1)]).view(span.num_frames, -1)


def published_count(num_frames: int, tokens_per_frame: int, pruning_rate: float) -> int:
    """Tokens kept at a pruning rate in [0, 1): `max(P, int(T * P * (1 - rate)))`."""
    return max(tokens_per_frame, int(num_frames * tokens_per_frame * (1 - pruning_rate)))


@torch.no_grad()
def change(features: Tensor) -> Tensor:
    """Cosine distance of every token to the one at its place in the frame before: `(T, P, D)` to float32 `(T, P)`, 255 in the first frame."""
    features = features.float()
    first = features.new_full((1, features.shape[1]), _FIRST_FRAME)
    return torch.cat([first, 1 - cosine_similarity(features[1:], features[:-1], dim=-1)])
