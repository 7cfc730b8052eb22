"""Values of single tokens: the draws, the regression and the loss."""

import pytest
import torch

from cacovid_hf.policies.base import PolicyOutput
from cacovid_hf.training.token_values import TokenValues, draw_among_likely, ranking_loss, token_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def output(scores):
    logits = torch.stack([torch.zeros(len(scores)), scores], dim=-1).view(3, -1, 2)
    return PolicyOutput(logits, torch.zeros(3, 2))


# ---------------------------------------------------------------- draws


def test_subsets_are_of_one_size_and_hold_likely_tokens_and_a_few_others():
    scores = torch.randn(8, 36, generator=seeded())
    masks, likely = draw_among_likely(scores, 5 / 288, 200, generator=seeded(1))
    assert masks.shape == (200, 8, 36)
    assert (masks.flatten(1).sum(1) == 5).all()
    order = scores.flatten().argsort(descending=True)
    assert torch.equal(likely, order[:10])
    seen = masks.flatten(1).any(0).nonzero().flatten().tolist()
    assert len(seen) == 16
    assert set(likely.tolist()) < set(seen)
    assert masks[0].flatten().nonzero().flatten().tolist() == sorted(order[:5].tolist())
    often = masks[1:].flatten(1).float().mean(0)
    assert often[order[0]] > 0.6
    assert 0.4 < often[order[1]] < often[order[0]]
    rest = often[[token for token in seen if token not in order[:2].tolist()]]
    assert rest.min() > 0.2
    assert rest.max() < 0.4


def test_one_seed_gives_the_same_subsets_and_another_one_others():
    scores = torch.randn(4, 9, generator=seeded())
    first, again, other = (draw_among_likely(scores, 0.1, 12, generator=seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (1, 5), (3, 4)])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6, 1.0])
def test_videos_of_few_tokens_are_drawn_from_and_valued(shape, ratio):
    scores = torch.randn(shape, generator=seeded())
    masks, likely = draw_among_likely(scores, ratio, 6, generator=seeded())
    size = scores.numel()
    assert (masks.flatten(1).sum(1) == max(1, round(ratio * size))).all()
    assert len(likely) == min(size, 2 * max(1, round(ratio * size)))
    found = token_values(masks.flatten(1), torch.rand(6, generator=seeded()), likely)
    assert found.values.isfinite().all()
    logits = torch.zeros(*shape, 2, requires_grad=True)
    ranking_loss(PolicyOutput(logits, torch.zeros(shape[0], 2)), found, 0.0, generator=seeded()).backward()
    assert logits.grad.isfinite().all()


def test_what_is_kept_of_a_sample_is_small():
    _, likely = draw_among_likely(torch.randn(8, 36, generator=seeded()), 5 / 288, 24, generator=seeded())
    assert likely.untyped_storage().nbytes() == 10 * 8


# ---------------------------------------------------------------- values


def test_values_are_found_where_the_reward_is_linear_in_them():
    worth = torch.zeros(40)
    likely = torch.tensor([7, 30, 2, 19])
    worth[likely] = torch.tensor([0.3, -0.2, 0.0, 0.1])
    masks = torch.rand(600, 40, generator=seeded()) < 0.3
    found = token_values(masks, 0.4 + (masks * worth).sum(1), likely)
    torch.testing.assert_close(found.values, worth[likely], rtol=0.05, atol=0.01)
    assert torch.equal(found.tokens, likely)


def test_equal_rewards_are_no_evidence():
    masks = torch.rand(24, 40, generator=seeded()) < 0.2
    found = token_values(masks, torch.full((24,), 0.7), torch.arange(6))
    torch.testing.assert_close(found.values, torch.zeros(6), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- loss


def test_the_loss_is_least_in_the_order_of_the_values():
    measured = TokenValues(torch.tensor([4, 9, 2]), torch.tensor([0.5, -0.4, 0.1]), 12)

    def loss(scores):
        return ranking_loss(output(scores), measured, 0.05, generator=seeded())

    right = torch.full((12,), -1.0)
    right[measured.tokens] = torch.tensor([4.0, -4.0, 2.0])
    misled = right.clone()
    misled[9] = 1.0
    assert loss(right) < loss(misled)
    scores = torch.zeros(12, requires_grad=True)
    loss(scores).backward()
    assert scores.grad[4] < 0 < scores.grad[9]
    assert scores.grad[2] < 0


def test_scores_come_above_zero_for_tokens_that_are_worth_their_price():
    """Descended to its end, the loss says by the sign what to keep."""
    measured = TokenValues(torch.tensor([4, 9, 2]), torch.tensor([0.5, -0.4, 0.1]), 12)
    for price, kept in ((0.05, {4, 2}), (0.3, {4})):
        scores, generator = torch.zeros(12, requires_grad=True), seeded()
        optimizer = torch.optim.SGD([scores], lr=2.0)
        for _ in range(300):
            optimizer.zero_grad()
            ranking_loss(output(scores), measured, price, generator=generator).backward()
            optimizer.step()
        assert set((scores > 0).nonzero().flatten().tolist()) == kept


def test_a_needed_token_that_cannot_be_told_from_those_that_mislead_is_kept_if_harm_weighs_less():
    """Of three tokens that look alike to the policy one is needed, another one each time."""
    tokens = torch.tensor([0, 1, 2])
    measured = [TokenValues(tokens, torch.tensor([0.4, -0.3, -0.3]).roll(shift), 12) for shift in range(3)]
    for harm_weight, kept in ((1.0, False), (0.25, True)):
        score, generator = torch.zeros((), requires_grad=True), seeded()
        optimizer = torch.optim.SGD([score], lr=1.0)
        for _ in range(100):
            optimizer.zero_grad()
            scores = torch.cat([score.expand(3), torch.zeros(9)])
            losses = [
                ranking_loss(output(scores), one, 0.0, harm_weight=harm_weight, generator=generator) for one in measured
            ]
            torch.stack(losses).mean().backward()
            optimizer.step()
        assert (score > 0).item() is kept
