"""What is remembered of a batch of samples over the iterations on it: one object per video, and the prompts of all."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..policies.base import PolicyOutput
from ..prompt import Prompt, PromptLayout
from .question import Question
from .token_values import TokenValues


@dataclass(frozen=True)
class Subsets:
    """What is tried on a video of `N = T * P` tokens in one iteration: `G` token rollouts, and `F` frame rollouts if there are any.

    Attributes:
        tokens: bool `(G, T, P)`, the tokens kept in each token rollout.
        frames: bool `(F, T)`, the frames chosen in each frame rollout; None without frame rollouts.
        frame_tokens: bool `(F, T, P)`, the tokens kept inside those frames; None without frame rollouts.
    """

    tokens: Tensor
    frames: Tensor | None = None
    frame_tokens: Tensor | None = None

    @property
    def keeps(self) -> Tensor:
        """Bool `(G + F, N)`, the tokens of every rollout."""
        parts = [self.tokens] if self.frame_tokens is None else [self.tokens, self.frame_tokens]
        return torch.cat(parts).flatten(1)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of `(G + F,)` values of all rollouts, those of the token rollouts `(G,)` and of the frame rollouts `(F,)`."""
        return values[: len(self.tokens)], values[len(self.tokens) :]


@dataclass(frozen=True)
class Rollouts:
    """Choices of one kind that were tried on a video, and what they earned.

    Attributes:
        masks: bool, of token rollouts `(R, T, P)`, of frame rollouts `(R, T)`.
        rewards: float32 `(R,)`, larger = better.
        parts: float32 `(R, K)`, the rewards that were added up, each before its weight.
    """

    masks: Tensor
    rewards: Tensor
    parts: Tensor


@dataclass
class VideoMemory:
    """What is remembered of one video and its question.

    Attributes:
        question: what the answers are judged by.
        number: the sample's place in the pass.
        ratio: the current sampling ratio.
        index: the sample's place in the dataset; None in a stream.
        old: the policy's output at the first iteration.
        tokens: the replay memory of the token rollouts, those of earlier iterations first.
        frames: likewise of the frame rollouts; None without them.
        attention: the teacher's `(T, P)`; with a teacher alone.
        measured: what likely tokens are worth; with the objective "contributions" alone.
        full: accuracy of the uncompressed model on the question, in [0, 1]; with a retention reward alone.
    """

    question: Question
    number: int
    ratio: float
    index: int | None = None
    old: PolicyOutput = field(init=False, repr=False)
    tokens: Rollouts = field(init=False, repr=False)
    frames: Rollouts | None = field(init=False, repr=False)
    attention: Tensor = field(init=False, repr=False)
    measured: TokenValues = field(init=False, repr=False)
    full: float = field(init=False)

    def remember(self, tokens: Rollouts, frames: Rollouts | None, *, behind_former: bool) -> None:
        """Put new rollouts behind the former ones, or in their place."""
        if behind_former:
            tokens = _joined(self.tokens, tokens)
            frames = None if self.frames is None or frames is None else _joined(self.frames, frames)
        self.tokens, self.frames = tokens, frames


@dataclass(frozen=True)
class BatchMemory:
    """What is remembered of a batch.

    Attributes:
        prompt: the embedded prompts, one video each.
        videos: one per prompt.
    """

    prompt: Prompt
    videos: list[VideoMemory]


def empty_prompt(width: int, device: torch.device) -> Prompt:
    """No prompts, of embeddings `width` wide: where a process has no samples left in a step."""
    none = torch.zeros(0, 0, dtype=torch.long, device=device)
    return Prompt(PromptLayout(none.bool(), none.bool(), ()), none, torch.zeros(0, 0, width, device=device), none)


def _joined(former: Rollouts, new: Rollouts) -> Rollouts:
    pairs = ((getattr(former, name), getattr(new, name)) for name in ("masks", "rewards", "parts"))
    return Rollouts(*map(torch.cat, pairs))
