"""What single tokens contribute to the right answer: subsets of likely tokens in, a value for each out, and a loss that learns their order.

Pure functions of tensors (ours). The language model answers from small subsets of likely tokens, mixed with tokens that are not likely. A linear
model of what the subsets earn says what each likely token adds, near its Banzhaf value, and shrunk a little by the ridge. A token that misleads has a value below zero. No ranking by
relevance can tell that: attention finds what resembles the question, not what harms the answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..compressors.tools.selection import top_tokens
from ..policies.base import PolicyOutput
from .sampling import rollout_size

# Of a subset's tokens, the likely ones are drawn from twice as many. The first two tenths of those stand in about 7 and 5 of 10 subsets, the others
# in 3: harm shows only where the answer can be told.
CANDIDATES = 2
AHEAD = (0.45, 0.25)
RIDGE = 1.0


@dataclass(frozen=True)
class TokenValues:
    """What likely tokens of one video are worth.

    Attributes:
        tokens: int64 `(C,)`, their places among the video's `N` tokens.
        values: float32 `(C,)`, what each adds to the reward; below zero: it misleads.
        size: `N`.
    """

    tokens: Tensor
    values: Tensor
    size: int

    def to(self, device: torch.device | str) -> "TokenValues":
        """Return the same on a device."""
        return TokenValues(self.tokens.to(device), self.values.to(device), self.size)


def draw_among_likely(
    token_scores: Tensor, ratio: float, num_rollouts: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw subsets in which the likely tokens come and go, each with as many others as it needs.

    Args:
        token_scores: `(T, P)`, keep minus drop logit: which tokens are likely.
        ratio: a subset has `n = max(1, round(ratio * N))` of the `N` tokens, out of `2 * n` likely and `n + 1` others.
        num_rollouts: `G`; the first subset has the `n` likeliest.
        generator: where the randomness comes from.

    Returns:
        bool `(G, T, P)`, and int64 `(C,)`, the likely tokens, the likeliest first.
    """
    scores = token_scores.detach().float().flatten()
    size = len(scores)
    count = rollout_size(size, ratio)
    order = scores.sort(descending=True, stable=True).indices
    likely, rest = order.split([min(CANDIDATES * count, size), max(size - CANDIDATES * count, 0)])
    chance = torch.rand(len(rest), generator=generator).to(rest.device)
    mixed = torch.cat([likely, rest[chance.argsort()[: count + 1]]])
    noise = torch.rand(num_rollouts, len(mixed), generator=generator).to(mixed.device)
    tenth = max(1, len(likely) // 10)
    for number, ahead in enumerate(AHEAD):
        noise[:, number * tenth : (number + 1) * tenth] += ahead
    noise[:1] = -torch.arange(len(mixed), device=noise.device, dtype=noise.dtype)
    masks = torch.zeros(num_rollouts, size, dtype=torch.bool, device=scores.device)
    masks[:, mixed] = top_tokens(noise, count)
    return masks.view(num_rollouts, *token_scores.shape), likely.clone()  # no view of all N


def token_values(masks: Tensor, rewards: Tensor, tokens: Tensor) -> TokenValues:
    """Explain what subsets earned by which likely tokens they had: ridge regression, the mean taken off.

    Args:
        masks: bool `(G, N)`, the subsets.
        rewards: `(G,)`, larger = better.
        tokens: int64 `(C,)`, the likely tokens.
    """
    inside = masks[:, tokens].float()
    inside = inside - inside.mean(0)
    gain = (rewards.float() - rewards.float().mean()).to(inside.device)
    square = inside.T @ inside + RIDGE * torch.eye(len(tokens), device=inside.device)
    return TokenValues(tokens, torch.linalg.solve(square, inside.T @ gain), masks.shape[1])


def ranking_loss(
    output: PolicyOutput, measured: TokenValues, price: float, *, harm_weight: float = 1.0, generator: torch.Generator
) -> Tensor:
    """How far the scores are from the order of the values: a logistic loss of every pair, weighted by what the exchange costs.

    Tokens that were not measured have the value zero, and as many of them as were measured are drawn into the loss. One more competitor has the
    score zero and the value `price`. So a score above zero says that a token is worth its price, which is what `AutoBudget` keeps.

    A policy that cannot tell a needed token from others that mislead scores all of them by their mean. Those that mislead may then outvote the
    needed one. With `harm_weight` below 1 more of such tokens are kept.

    Args:
        output: of the policy in training, `N` tokens.
        measured: `C` tokens and their values.
        price: what a token must add to be kept.
        harm_weight: what values below zero are multiplied by; 0: tokens that mislead count as those that do nothing.
        generator: of the tokens that were not measured.

    Returns:
        The loss, 0-dimensional with a graph to the token head; near 0: the order is learnt.
    """
    scores = output.token_scores.float().flatten()
    measured = measured.to(scores.device)
    tokens, values = measured.tokens, measured.values
    noise = torch.rand(len(scores), generator=generator).to(scores.device).scatter(0, tokens, -1.0)
    others = noise.topk(min(len(tokens), len(scores) - len(tokens))).indices
    compared = torch.cat([scores[tokens], scores[others], scores.new_zeros(1)])
    values = torch.where(values < 0, harm_weight * values, values)
    worth = torch.cat([values, values.new_zeros(len(others)), values.new_tensor([price])])
    ahead = (worth[:, None] - worth).clamp(min=0)
    return (ahead * F.softplus(compared - compared[:, None])).sum() / len(tokens)
