"""What single tokens contribute to the right answer: a dense signal out of few rollouts.

A question's likely tokens are drawn into small subsets together with tokens that are not likely. The language model answers from every subset, and a
linear model of the right answer's probability says what each likely token adds in place of an unlikely one (ours; the values are near Banzhaf's). A token
that misleads has a negative value, which no attention and no label of the evidence has. A policy then learns the order of the values, over and over again
from the same rollouts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cacovid_hf.policies.base import PolicyOutput
from studies.laboratory.questions import NUM_TOKENS, Asked
from studies.laboratory.scores import right_from

CANDIDATES, OTHERS = 10, 6  # tokens of a question that are likely, and tokens drawn from the rest
SIZE, DRAWS = 5, 24  # tokens in a subset, and subsets of a question
# The two likeliest tokens stand in 7 and 5 of 10 subsets, the others in 3: harm shows where the answer can be told.
AHEAD = (0.45, 0.25)
RIDGE = 1.0
THRESHOLD = 0.05  # a token that adds more than this has a score above zero


@dataclass(frozen=True)
class Contributions:
    """Subsets of `Q` questions and how they were answered.

    Attributes:
        questions: int64 `(Q,)`, their numbers.
        candidates: int64 `(Q, CANDIDATES + OTHERS)`, tokens by number, the likely ones first.
        drawn: bool `(Q, DRAWS, CANDIDATES + OTHERS)`, which of them a subset has.
        probability: `(Q, DRAWS)`, of the right answer.
    """

    questions: Tensor
    candidates: Tensor
    drawn: Tensor
    probability: Tensor

    def values(self) -> Tensor:
        """What a likely token adds to the right answer's probability, `(Q, CANDIDATES)`: larger = keep, below zero: it misleads."""
        inside = self.drawn[..., :CANDIDATES].float()
        inside = inside - inside.mean(1, keepdim=True)
        gain = (self.probability - self.probability.mean(1, keepdim=True))[..., None]
        square = inside.mT @ inside + RIDGE * torch.eye(CANDIDATES)
        return torch.linalg.solve(square, inside.mT @ gain)[..., 0]


def measure(model: Any, asked: Asked, scores: Tensor, questions: Tensor, generator: torch.Generator) -> Contributions:
    """Draw subsets of some questions and have them answered.

    Args:
        model: the video model.
        asked: clips and questions.
        scores: `(C, Q, N)`, which tokens are likely: attention, or a policy's.
        questions: int64, numbers of questions in the order of the clips.
        generator: of the subsets.
    """
    some = asked.alone(questions)
    likely = scores.flatten(0, 1)[questions].float()
    order = likely.sort(dim=-1, descending=True, stable=True).indices
    rest = torch.rand(len(questions), NUM_TOKENS - CANDIDATES, generator=generator).topk(OTHERS, dim=1).indices
    candidates = torch.cat([order[:, :CANDIDATES], order[:, CANDIDATES:].gather(1, rest)], dim=1)
    noise = torch.rand(len(questions), DRAWS, candidates.shape[1], generator=generator)
    noise[..., : len(AHEAD)] += torch.tensor(AHEAD)
    picks = noise.topk(SIZE, dim=2).indices
    kept = candidates[:, None].expand(-1, DRAWS, -1).gather(2, picks).sort(dim=2).values
    repeated = some.chosen(torch.zeros(len(questions), DRAWS, dtype=torch.long))
    _, probability = right_from(model, repeated, kept)
    return Contributions(questions, candidates, torch.zeros_like(noise).bool().scatter(2, picks, True), probability)


def ranking_loss(output: PolicyOutput, candidates: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """How far the scores of a question are from the order of the values: a logistic loss of every pair, weighted by what the exchange costs.

    Tokens that were not measured have the value zero, and so many of them as were measured stand in each loss. One more competitor has the score zero
    and the value `THRESHOLD`, so a score above zero says that a token is worth its place.

    Args:
        output: of the policy in training.
        candidates: int64 `(CANDIDATES,)`, tokens by number.
        values: `(CANDIDATES,)`, see `Contributions.values`.
        generator: of the tokens that were not measured.

    Returns:
        The loss, 0-dimensional with a graph to the policy.
    """
    scores = output.token_scores.flatten()
    noise = torch.rand(len(scores), generator=generator).scatter(0, candidates, -1.0)
    others = noise.topk(len(candidates)).indices
    compared = torch.cat([scores[candidates], scores[others], scores.new_zeros(1)])
    worth = torch.cat([values, values.new_zeros(len(others)), values.new_tensor([THRESHOLD])])
    ahead = (worth[:, None] - worth).clamp(min=0)
    return (ahead * F.softplus(compared - compared[:, None])).sum() / len(candidates)
