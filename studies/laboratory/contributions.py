"""What single tokens contribute to the right answer, measured once for many questions; see `cacovid_hf.training.token_values`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cacovid_hf.training.token_values import TokenValues, draw_among_likely, token_values
from studies.laboratory.questions import NUM_TOKENS, Asked
from studies.laboratory.scores import right_from

SIZE, DRAWS = 5, 24  # tokens in a subset, and subsets of a question
PRICE = 0.05  # a token that adds more than this has a score above zero


@dataclass(frozen=True)
class Contributions:
    """Subsets of `Q` questions and how they were answered.

    Attributes:
        questions: int64 `(Q,)`, their numbers.
        likely: int64 `(Q, C)`, tokens by number.
        masks: bool `(Q, DRAWS, N)`, the subsets.
        probability: `(Q, DRAWS)`, of the right answer.
    """

    questions: Tensor
    likely: Tensor
    masks: Tensor
    probability: Tensor

    def measured(self) -> list[TokenValues]:
        """What the likely tokens of each question are worth."""
        return [*map(token_values, self.masks, self.probability, self.likely)]


def measure(model: Any, asked: Asked, scores: Tensor, questions: Tensor, generator: torch.Generator) -> Contributions:
    """Draw subsets of some questions and have them answered.

    Args:
        model: the video model.
        asked: clips and questions.
        scores: `(Q, N)`, which tokens are likely, of these questions: attention, or a policy's.
        questions: int64, numbers of questions in the order of the clips.
        generator: of the subsets.
    """
    drawn = [draw_among_likely(row, SIZE / NUM_TOKENS, DRAWS, generator=generator) for row in scores]
    masks, likely = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    kept = masks.nonzero()[:, 2].view(len(questions), DRAWS, SIZE)
    repeated = asked.alone(questions).chosen(torch.zeros(len(questions), DRAWS, dtype=torch.long))
    return Contributions(questions, likely, masks, right_from(model, repeated, kept)[1])
