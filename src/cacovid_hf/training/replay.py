"""What is remembered of a batch of samples over the iterations on it."""

from dataclasses import dataclass, field

from torch import Tensor

from ..policies.base import PolicyOutput
from ..prompt import Prompt
from .judge import Question


@dataclass
class Memory:
    """What is remembered of a batch over its iterations.

    Attributes:
        prompt: the embedded prompts.
        questions: what the answers are judged by, by video.
        numbers: the samples' places in the pass, by video.
        old: the policy's output at the first iteration, by video.
        ratios: the current sampling ratio, by video.
        attention: the teacher's `(T, P)`, by video; empty without a teacher.
        token_masks: bool `(G, T, P)` so far, by video.
        token_rewards: `(G,)` so far, by video.
        frame_masks: bool `(G', T)` so far, by video.
        frame_rewards: `(G',)` so far, by video.
    """

    prompt: Prompt
    questions: list[Question]
    numbers: list[int]
    old: list[PolicyOutput]
    ratios: list[float]
    attention: list[Tensor] = field(default_factory=list)
    token_masks: list[Tensor] = field(default_factory=list)
    token_rewards: list[Tensor] = field(default_factory=list)
    frame_masks: list[Tensor] = field(default_factory=list)
    frame_rewards: list[Tensor] = field(default_factory=list)

    def forget(self) -> None:
        """Drop all rollouts so far."""
        for rollouts in (self.token_masks, self.token_rewards, self.frame_masks, self.frame_rewards):
            rollouts.clear()
