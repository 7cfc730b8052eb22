"""What a compression method is: one dataclass that says, for each video of an embedded prompt, which tokens stay.

The base class owns the rest: the integer budget of every video is computed once, the keep masks are checked against it, and the prompt is
gathered elsewhere (`cacovid_hf.prompt`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..policy import Policy
from ..prompt import Prompt, VideoSelection, VideoSpan
from ..selection import token_budget


@dataclass(frozen=True)
class Scores:
    """Scores of one video: token `(T, P)` and frame `(T,)`, float32, larger = keep."""

    token: Tensor
    frame: Tensor


class Compressor(ABC):
    """A method that keeps a subset of a video's tokens.

    A subclass is a dataclass of its settings with a `name`; it implements `select` for one video and, if it looks at whole prompts first,
    `score`. It holds no state between calls.
    """

    name: ClassVar[str]

    def score(self, prompt: Prompt, policy: Policy) -> list[Scores | None]:
        """Scores of every video of the prompt, in order; None for methods without scores."""
        return [None] * len(prompt.layout.videos)

    @abstractmethod
    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float) -> Tensor:
        """Choose the tokens of one video.

        Args:
            prompt: the embedded prompts; `prompt.video_features(span)` are the video's tokens.
            span: its place and grid.
            scores: what `score` said of it.
            retention_ratio: in (0, 1).

        Returns:
            bool `(T, P)` with exactly `token_budget(T * P, retention_ratio)` true.
        """

    def compress(
        self, prompt: Prompt, policy: Policy, retention_ratios: list[float]
    ) -> tuple[tuple[VideoSelection, ...], list[int]]:
        """Select in every video of the prompt.

        Args:
            prompt: the embedded prompts.
            policy: the model's contribution policy, for the methods that use it.
            retention_ratios: one a video, in (0, 1].

        Returns:
            One selection a video, and how many tokens each keeps.
        """
        selections: list[VideoSelection] = []
        budgets: list[int] = []
        for span, scores, ratio in zip(prompt.layout.videos, self.score(prompt, policy), retention_ratios, strict=True):
            keep = self.select(prompt, span, scores, ratio)
            selections.append(
                VideoSelection(span, keep, scores.token if scores else None, scores.frame if scores else None)
            )
            budgets.append(token_budget(span.num_tokens, ratio))
        # A prompt cut by a count that is not its mask's would come out scrambled, without a sign of it.
        kept = torch.stack([s.keep.sum() for s in selections]).tolist() if selections else []
        for selection, budget, count in zip(selections, budgets, kept, strict=True):
            shape = (selection.span.num_frames, selection.span.tokens_per_frame)
            if count != budget or selection.keep.shape != shape or selection.keep.dtype != torch.bool:
                raise ValueError(
                    f"compressor {self.name!r} kept {count} tokens ({selection.keep.dtype}, {tuple(selection.keep.shape)}) of a video, the budget is "
                    f"{budget} of {shape}: `select` must return a bool mask with exactly `token_budget(T * P, retention_ratio)` true."
                )
        return tuple(selections), budgets
