"""The search finds what trying everything finds, and says when it did not try everything."""

import itertools
import math

import pytest
import torch

from studies.search import beam_search


class Rewards:
    """A random reward of pairs, so that a good subset need not begin with the best single token."""

    def __init__(self, num_tokens, seed=0):
        pairs = torch.randn(num_tokens, num_tokens, generator=torch.Generator().manual_seed(seed))
        self.pairs, self.seen = pairs + pairs.T, []

    def __call__(self, masks):
        self.seen += [tuple(mask.nonzero()[:, 0].tolist()) for mask in masks]
        chosen = masks.float()
        return ((chosen @ self.pairs) * chosen).sum(1)


def test_all_subsets_are_tried_once_and_the_best_is_found():
    rewards = Rewards(7)
    found = beam_search(rewards, 7, 3)
    assert sorted(rewards.seen) == sorted(c for k in (1, 2, 3) for c in itertools.combinations(range(7), k))
    assert [best.evaluated for best in found] == [7, 7 + 21, 7 + 21 + 35]
    for size, best in enumerate(found, 1):
        masks = torch.zeros(math.comb(7, size), 7, dtype=torch.bool)
        for row, kept in enumerate(itertools.combinations(range(7), size)):
            masks[row, list(kept)] = True
        values = rewards(masks)
        assert best.exhaustive
        assert best.reward == pytest.approx(values.max().item())
        assert torch.equal(best.mask, masks[values.argmax()])


def test_a_narrow_beam_tries_less_and_does_not_claim_more():
    exact = beam_search(Rewards(8), 8, 3)
    for width in (1, 4, 28):
        found = beam_search(Rewards(8), 8, 3, width=width)
        assert [best.exhaustive for best in found] == [True, width >= 8, width >= 28]
        assert found[-1].evaluated <= exact[-1].evaluated
        assert found[-1].reward <= exact[-1].reward + 1e-6
        assert [int(best.mask.sum()) for best in found] == [1, 2, 3]
    greedy, wide = beam_search(Rewards(8), 8, 3, width=1), beam_search(Rewards(8), 8, 3, width=28)
    assert greedy[-1].evaluated == 8 + 7 + 6
    assert wide[-1].reward == pytest.approx(exact[-1].reward)


def test_ties_go_to_the_lower_tokens():
    found = beam_search(lambda masks: torch.zeros(len(masks)), 5, 3, width=2)
    assert [best.mask.nonzero()[:, 0].tolist() for best in found] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(count=0), r"count=0 is outside \[1, 4\]"),
        (dict(count=5), r"count=5 is outside \[1, 4\]"),
        (dict(count=2, width=0), "width=0 is under 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        beam_search(lambda masks: torch.zeros(len(masks)), 4, **settings)


def test_one_reward_a_subset():
    with pytest.raises(ValueError, match=r"rewards has shape \(4, 1\) for 4 subsets"):
        beam_search(lambda masks: torch.zeros(len(masks), 1), 4, 1)
