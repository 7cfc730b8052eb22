"""Samplers against the published code's probabilities, and what is drawn against the probabilities it is drawn by."""

import itertools
import math

import pytest
import torch
from helpers.golden import golden

from cacovid_hf.compressors.tools.selection import top_tokens
from cacovid_hf.training.sampling import (
    SAMPLERS,
    cap_probabilities,
    density_peak_select,
    ocss_groups,
    ocss_probabilities,
    rollout_size,
    sample_bernoulli,
    sample_frames,
    sample_multinomial,
    sample_ocss,
    sample_random,
)

INDEX, TENSORS = golden("train")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frequencies(masks):
    """How often each distinct mask was drawn, by its tuple of kept places."""
    counts = {}
    for mask in masks.flatten(1):
        kept = tuple(mask.nonzero()[:, 0].tolist())
        counts[kept] = counts.get(kept, 0) + 1 / len(masks)
    return counts


def successive(probabilities, count):
    """Probability of every set of `count` places when they are drawn one after the other without replacement."""
    sets = {}
    for order in itertools.permutations(range(len(probabilities)), count):
        left, chance = 1.0, 1.0
        for place in order:
            chance *= probabilities[place] / left
            left -= probabilities[place]
        sets[tuple(sorted(order))] = sets.get(tuple(sorted(order)), 0.0) + chance
    return sets


def assert_drawn_by(masks, expected):
    """Every frequency within five standard errors of its probability, and nothing drawn that has none."""
    found = frequencies(masks)
    for kept in found.keys() | expected.keys():
        chance = expected.get(kept, 0.0)
        error = 5 * math.sqrt(chance * (1 - chance) / len(masks)) + 1e-6
        assert abs(found.get(kept, 0.0) - chance) < error, (kept, found.get(kept), chance)


# ---------------------------------------------------------------- capped probabilities

# The published code takes a batch of frame distributions for one: only single rows are compared.
CLIPPED = [case for case in INDEX["clip_max_probability"] if len(case["shape"]) == 1]


@pytest.mark.parametrize("case", CLIPPED, ids=lambda case: f"{case['name']}-{case['max_prob']}")
def test_golden_capped_probabilities(case):
    probabilities = TENSORS[f"clipmax.{case['name']}.p"]
    size = len(probabilities)
    if case["result"] == "ok":
        expected = TENSORS[f"clipmax.{case['name']}.out"]
        torch.testing.assert_close(cap_probabilities(probabilities, case["max_prob"]), expected, atol=3e-7, rtol=1e-6)
    elif case["max_prob"] * size == 1:
        torch.testing.assert_close(
            cap_probabilities(probabilities, case["max_prob"]), torch.full((size,), 1 / size)
        )  # published: an error
    else:
        with pytest.raises(ValueError, match=rf"most={case['max_prob']} is too small for {size} probabilities"):
            cap_probabilities(probabilities, case["max_prob"])


def test_every_capped_row_is_a_distribution_of_its_own():
    rows = torch.randn(40, 9, generator=seeded()).mul(4).softmax(-1)
    for most in (0.12, 0.2, 0.5, 0.9, 2.0):
        capped = cap_probabilities(rows, most)
        torch.testing.assert_close(capped.sum(-1), torch.ones(40))
        assert capped.max() <= most + 1e-6
        assert capped.min() >= 1 / 9**2 / 2
        torch.testing.assert_close(capped, torch.stack([cap_probabilities(row, most) for row in rows]))
        # Order is kept, and what is under the cap keeps its proportions (where the floor does not act).
        assert (capped.gather(1, rows.argsort(1)).diff(dim=1) >= -1e-7).all()
        for row, result in zip(rows, capped, strict=True):
            free = (result < most - 1e-5) & (row > 3 / 9**2)
            torch.testing.assert_close(result[free] / result[free].sum(), row[free] / row[free].sum())


# ---------------------------------------------------------------- OCSS


@pytest.mark.parametrize("case", INDEX["ocss"], ids=lambda case: case["name"])
def test_golden_ocss_groups_and_probabilities(case):
    name, num_groups = case["name"], case["num_group"]
    scores = TENSORS[f"{name}.p"].log()
    groups = ocss_groups(scores, num_groups)
    assert torch.equal(groups, TENSORS[f"{name}.group_of_token"].long())
    assert groups.bincount().tolist() == case["group_lengths"]
    of_groups, of_tokens = ocss_probabilities(scores, num_groups, case["max_group_prob"])
    torch.testing.assert_close(of_groups, TENSORS[f"{name}.group_prob"], atol=5e-7, rtol=1e-6)
    # The published code adds 1e-8 to the mass that it divides by, which shows in a group of very unlikely tokens.
    torch.testing.assert_close(of_tokens, TENSORS[f"{name}.ingroup_prob"], atol=3e-5, rtol=1e-6)
    assert rollout_size(case["hw"], case["max_sample_rate"]) == case["k"]
    drawn = sample_ocss(
        scores[None],
        case["max_sample_rate"],
        50,
        spread=case["group_size"],
        group_cap=case["max_group_prob"],
        generator=seeded(),
    )
    assert set(drawn.sum(-1).flatten().tolist()) == set(case["sample_counts"])
    for kept in drawn[1:, 0]:
        assert len(groups[kept].unique()) == 1  # a rollout stays in one of the golden groups, so there are as many


def test_groups_are_of_like_score_with_the_lower_index_first_at_ties():
    groups = ocss_groups(torch.tensor([[0.0, 5, 1, 1, 1, 7, 0], [0, 0, 0, 0, 0, 0, 0]]), 3)
    assert groups.tolist() == [[2, 0, 0, 1, 1, 0, 2], [0, 0, 0, 1, 1, 2, 2]]


def test_scores_far_apart_leave_no_group_without_probabilities():
    of_groups, of_tokens = ocss_probabilities(torch.linspace(-500, 500, 12), 4)
    for probabilities in (of_groups, of_tokens):
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    assert ((of_tokens > 0).sum(-1) == 3).all()


@pytest.mark.parametrize("group_cap", [1.0, 2.0, 9.0])
def test_ocss_draws_groups_and_tokens_by_their_probabilities(group_cap):
    scores = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4, 1.1])
    masks = sample_ocss(scores[None], 1 / 3, 40_001, spread=1.5, group_cap=group_cap, generator=seeded(3))
    assert masks.shape == (40_001, 1, 6)
    assert torch.equal(masks[0, 0], top_tokens(scores, 2))
    of_groups, of_tokens = ocss_probabilities(scores, 2, group_cap)
    expected = {}
    for chance, tokens in zip(of_groups.double().tolist(), of_tokens.double().tolist(), strict=True):
        members = [place for place, probability in enumerate(tokens) if probability > 0]
        assert len(members) == 3
        for kept, inside in successive([tokens[place] for place in members], 2).items():
            expected[tuple(members[i] for i in kept)] = chance * inside
    assert_drawn_by(masks[1:], expected)


def test_frames_and_rollouts_are_drawn_independently():
    scores = torch.zeros(2, 4)
    masks = sample_ocss(scores, 0.25, 20_001, spread=2.0, generator=seeded(5))[1:]
    assert_drawn_by(masks, {(a, 4 + b): 1 / 16 for a in range(4) for b in range(4)})
    pairs = torch.cat([masks[:-1, :1], masks[1:, :1]], dim=1)
    assert_drawn_by(pairs, {(a, 4 + b): 1 / 16 for a in range(4) for b in range(4)})


# ---------------------------------------------------------------- the other samplers


def test_multinomial_draws_without_replacement_by_the_softmax():
    scores = torch.tensor([[0.5, -1.0, 1.5], [0.0, 0.7, -0.3]])
    whole = sample_multinomial(scores, 0.5, 30_001, scope="video", generator=seeded(1))
    assert torch.equal(whole[0].flatten(), top_tokens(scores.flatten(), 3))
    assert_drawn_by(whole[1:], successive(scores.flatten().double().softmax(0).tolist(), 3))
    by_frame = sample_multinomial(scores, 0.6, 30_001, generator=seeded(2))
    for frame in range(2):
        assert torch.equal(by_frame[0, frame], top_tokens(scores[frame], 2))
        assert_drawn_by(by_frame[1:, frame], successive(scores[frame].double().softmax(0).tolist(), 2))


def test_random_draws_every_subset_alike():
    scores = torch.tensor([[9.0, 0.0, 0.0, -9.0, 1.0]])
    masks = sample_random(scores, 0.4, 20_001, generator=seeded(4))
    assert masks[0, 0].nonzero()[:, 0].tolist() == [0, 4]
    assert_drawn_by(masks[1:, 0], dict.fromkeys(itertools.combinations(range(5), 2), 0.1))


def test_bernoulli_keeps_each_token_by_its_own_probability():
    scores = torch.tensor([[-3.0, 0.4, 2.0], [0.0, -0.5, 5.0]])
    masks = sample_bernoulli(scores, 20_001, generator=seeded(6))
    assert torch.equal(masks[0], scores > 0)
    drawn, chances = masks[1:].float().flatten(1), scores.sigmoid().flatten()
    error = 5 * (chances * (1 - chances) / 20_000).sqrt()
    assert ((drawn.mean(0) - chances).abs() < error + 1e-6).all()
    assert (torch.corrcoef(drawn.T) - torch.eye(6)).abs().max() < 0.05
    # Never nothing.
    lonely = sample_bernoulli(torch.tensor([[-60.0, -50.0, -60.0]]), 5, generator=seeded())
    assert lonely.flatten(1).tolist() == [[False, True, False]] * 5
    assert sample_bernoulli(scores, 0, generator=seeded()).shape == (0, 2, 3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spread_of_scores", [0.0, 1.0, 300.0])
def test_exact_counts_always(sampler, spread_of_scores):
    for frames, tokens, ratio in itertools.product((1, 3, 8), (1, 2, 7, 36, 98), (0.001, 0.02, 0.13, 0.5, 0.97, 1.0)):
        scores = torch.randn(frames, tokens, generator=seeded(tokens)) * spread_of_scores
        for scope, size in (("frame", tokens), ("video", frames * tokens)):
            masks = SAMPLERS[sampler](scores, ratio, 6, scope=scope, generator=seeded())
            assert masks.shape == (6, frames, tokens)
            assert masks.dtype == torch.bool
            counts = masks.sum(-1) if scope == "frame" else masks.sum((-2, -1))
            assert (counts == max(1, round(ratio * size))).all(), (frames, tokens, ratio, scope)


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_ocss_counts_are_exact_for_every_group_size(spread):
    for tokens, ratio in itertools.product((9, 36, 196), (0.003, 0.02, 0.11, 0.34, 0.5)):
        masks = sample_ocss(torch.randn(2, tokens), ratio, 9, spread=spread, group_cap=1.5, generator=seeded())
        assert (masks.sum(-1) == max(1, round(ratio * tokens))).all()


def test_a_rollout_never_needs_more_than_its_group():
    scores = torch.randn(1, 9, generator=seeded())
    groups = ocss_groups(
        scores, 3
    )  # int(1 / (0.5 * 0.34)) = 5 groups would hold one or two tokens each, and 3 are drawn
    masks = sample_ocss(scores, 0.34, 60, spread=0.5, generator=seeded())
    assert {tuple(groups[mask].tolist()) for mask in masks} == {(0, 0, 0), (1, 1, 1), (2, 2, 2)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_its_subsets_again_and_another_gives_others(sampler):
    scores = torch.randn(4, 30, generator=seeded())
    before = torch.get_rng_state()
    first, again, other = (SAMPLERS[sampler](scores, 0.2, 5, generator=seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scores_of_a_whole_video_may_be_flat_and_rollouts_may_be_none(sampler):
    scores = torch.randn(4, 6, generator=seeded())
    flat = SAMPLERS[sampler](scores.flatten(), 0.2, 5, generator=seeded(1))
    shaped = SAMPLERS[sampler](scores, 0.2, 5, scope="video", generator=seeded(1))
    assert torch.equal(flat.view(5, 4, 6), shaped)
    assert SAMPLERS[sampler](scores, 0.2, 0, generator=seeded()).shape == (0, 4, 6)


# ---------------------------------------------------------------- diversity and frames


def density_peaks(features, count, neighbours=4):
    """The scores and the choice token by token, in double precision."""
    points = features.double()
    size, width = points.shape
    distances = [[float((a - b).square().sum() / width) ** 0.5 for b in points] for a in points]
    density = [math.exp(-sum(d**2 for d in sorted(row)[:neighbours]) / min(neighbours, size)) for row in distances]
    largest = max(max(row) for row in distances)
    scores = []
    for i in range(size):
        denser = [distances[i][j] for j in range(size) if (density[j], -j) > (density[i], -i)]
        scores.append(density[i] * min(denser, default=largest))
    return scores, sorted(sorted(range(size), key=lambda i: -scores[i])[:count])


@pytest.mark.parametrize("case", INDEX["div_sample"], ids=lambda case: case["name"])
def test_golden_density_peaks(case):
    features = TENSORS[f"{case['name']}.features"]
    keep = density_peak_select(features, case["topk"])
    assert torch.equal(keep, TENSORS[f"{case['name']}.mask"].bool())
    assert keep.sum() == case["count"]


def test_density_peaks_by_hand():
    for name, count in (("div.0", 5), ("div.9", 7), ("div.12", 4)):
        features = TENSORS[f"{name}.features"]
        scores, chosen = density_peaks(features, count)
        if f"{name}.score_float64" in TENSORS:
            torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), TENSORS[f"{name}.score_float64"])
        assert density_peak_select(features, count).nonzero()[:, 0].tolist() == chosen
    for size in (1, 2, 3):  # fewer tokens than neighbours
        features = torch.randn(size, 8, generator=seeded(size))
        assert density_peak_select(features, 1).nonzero()[:, 0].tolist() == density_peaks(features, 1)[1]


def test_copies_of_a_token_are_kept_once_before_any_twice():
    # Four clusters of equal tokens, far from the origin: one token of each, the first, then the lowest indices.
    centres = torch.randn(4, 16, generator=seeded()) + 100
    features = centres.repeat_interleave(5, dim=0)
    assert density_peak_select(features, 4).nonzero()[:, 0].tolist() == [0, 5, 10, 15]
    assert density_peak_select(features, 6).nonzero()[:, 0].tolist() == [0, 1, 2, 5, 10, 15]
    assert density_peak_select(torch.ones(6, 3), 2).tolist() == [True, True] + [False] * 4


def test_density_peaks_far_from_the_origin():
    features = torch.randn(40, 16, generator=seeded()) + 3000
    assert density_peak_select(features, 9).nonzero()[:, 0].tolist() == density_peaks(features, 9)[1]


def test_density_peaks_of_a_batch_are_those_of_its_rows():
    features = torch.randn(3, 2, 24, 8, generator=seeded())
    keep = density_peak_select(features, 6)
    assert torch.equal(keep.flatten(0, 1), torch.stack([density_peak_select(f, 6) for f in features.flatten(0, 1)]))
    assert torch.equal(density_peak_select(features.half(), 24), torch.ones(3, 2, 24, dtype=torch.bool))


def test_frames_are_drawn_by_their_capped_probabilities():
    scores = torch.tensor([3.0, 0.0, 0.5, -1.0, -2.0, 0.1, 0.2, 0.3])
    features = torch.randn(8, 2, 4, generator=seeded())
    frames, _ = sample_frames(scores, features, 0.01, 30_001, seeded(9), scope="video", frame_share=0.25)
    expected = cap_probabilities(scores.softmax(0), 3 / 8)
    assert expected.max() == pytest.approx(3 / 8)  # the cap acts here
    assert frames[0].nonzero()[:, 0].tolist() == [0, 2]
    assert_drawn_by(frames[1:], successive(expected.double().tolist(), 2))


@pytest.mark.parametrize("scope", ["frame", "video"])
def test_frame_rollouts_keep_what_token_rollouts_keep_inside_few_frames(scope):
    for num_frames, tokens, ratio in itertools.product((1, 2, 8, 16), (1, 4, 36), (0.01, 0.05, 0.12, 0.5, 1.0)):
        scores = torch.randn(num_frames, generator=seeded(num_frames))
        features = torch.randn(num_frames, tokens, 6, generator=seeded(tokens))
        frames, kept = sample_frames(scores, features, ratio, 5, seeded(), scope=scope)
        by_tokens = sample_random(features[..., 0], ratio, 1, scope=scope, generator=seeded())
        assert (kept.sum((1, 2)) == by_tokens.sum()).all()
        assert not kept[~frames].any()
        fitting = math.ceil(int(by_tokens.sum()) / tokens)
        assert (frames.sum(1) == max(math.ceil(num_frames / 8), fitting)).all()
        assert torch.equal(frames[0], top_tokens(scores, int(frames[0].sum())))
        for chosen, mask in zip(frames, kept, strict=True):
            inside = features[chosen]
            alone = density_peak_select(inside.flatten(0, 1), int(by_tokens.sum()))
            assert torch.equal(mask[chosen].flatten(), alone)


def test_no_frame_rollouts():
    frames, kept = sample_frames(torch.zeros(3), torch.zeros(3, 4, 5), 0.3, 0, seeded())
    assert (frames.shape, kept.shape) == ((0, 3), (0, 3, 4))


# ---------------------------------------------------------------- bad input

GOOD = torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: sample_ocss(GOOD, 0.0, 2, generator=g), r"ratio=0\.0 is outside \(0, 1\]"),
        (lambda g: sample_ocss(GOOD, 1.5, 2, generator=g), r"ratio=1\.5 is outside \(0, 1\]"),
        (lambda g: sample_ocss(GOOD, 0.2, 2, spread=0, generator=g), "spread=0 is not above 0"),
        (lambda g: sample_ocss(GOOD, 0.2, 2, group_cap=0.5, generator=g), r"group_cap=0\.5 is under 1"),
        (lambda g: sample_ocss(GOOD, 0.2, 2, scope="clip", generator=g), "scope='clip' is unknown"),
        (lambda g: sample_multinomial(GOOD * torch.nan, 0.2, 2, generator=g), "NaN or infinite"),
        (lambda g: sample_multinomial(GOOD, 0.2, -1, generator=g), "num_rollouts=-1 is negative"),
        (lambda g: sample_random(GOOD[:0], 0.2, 2, generator=g), r"shape \(0, 6\): there is nothing to draw"),
        (lambda g: sample_frames(GOOD[0], torch.zeros(2, 6, 3), 0.2, 2, g), r"frame_scores has shape \(6,\)"),
        (lambda g: sample_frames(GOOD[:, 0], torch.zeros(2, 6, 3), 0.2, 2, g, frame_share=0), "frame_share=0.0 is"),
        (lambda g: sample_frames(GOOD[:, 0], torch.zeros(2, 6, 3), 0.2, 2, g, frame_cap=0.5), r"frame_cap=0\.5 is"),
        (lambda g: density_peak_select(torch.zeros(6, 3), 7), r"count=7 is outside \[0, 6\]"),
        (lambda g: ocss_groups(GOOD, 7), "num_groups=7 does not split 6 tokens"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(seeded())
