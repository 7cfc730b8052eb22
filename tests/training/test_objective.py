"""The loss and its gradients against the published code's, and what the published code gets wrong."""

import math
from dataclasses import fields

import pytest
import torch
from helpers.golden import golden, with_prefix

from cacovid_hf.policies.base import PolicyOutput
from cacovid_hf.training.objective import (
    Statistics,
    advantages,
    balanced_weights,
    cpo_loss,
    distillation_loss,
    next_ratio,
    priced,
    summed_advantages,
)

INDEX, TENSORS = golden("train")
CASES = {case["name"]: case for case in INDEX["cpo"]}


def outputs(data, frames, kind=""):
    tokens = data[f"{kind}token_logits"].view(frames, -1, 2).clone()
    return PolicyOutput(tokens, data[f"{kind}frame_logits"].clone())


def random_case(seed=0, frames=3, tokens=5, rollouts=6, frame_rollouts=4):
    """Arguments of `cpo_loss` whose new policy differs from the old one."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    old = PolicyOutput(noise(frames, tokens, 2), noise(frames, 2))
    new = PolicyOutput(old.token_logits + noise(frames, tokens, 2), old.frame_logits + noise(frames, 2))
    new.token_logits.requires_grad_()
    new.frame_logits.requires_grad_()
    return (
        new,
        old,
        noise(rollouts, frames, tokens) > 0.7,
        advantages(noise(rollouts)),
        noise(frame_rollouts, frames) > 0.5,
        advantages(noise(frame_rollouts)),
    )


@pytest.mark.parametrize("name", CASES)
def test_golden_loss_and_gradients(name):
    case, data = CASES[name], with_prefix(TENSORS, f"cpo.{name}.")
    new, old = outputs(data, case["t"]), outputs(data, case["t"], "old_")
    new.token_logits.requires_grad_()
    new.frame_logits.requires_grad_()
    token_masks = data["token_mask"].bool().view(-1, case["t"], case["N"] // case["t"])
    token_advantages, frame_advantages = advantages(data["token_reward"]), advantages(data["frame_reward"])
    torch.testing.assert_close(token_advantages, data["advantages_token"])
    loss, statistics = cpo_loss(
        new,
        old,
        token_masks,
        token_advantages,
        data["frame_mask"].bool(),
        frame_advantages,
        clip_low=case["epsilon_low"],
        clip_high=case["epsilon_high"],
        kl_weight=case["kl_weight"],
    )
    loss.backward()
    torch.testing.assert_close(statistics.token_loss, data["token_loss"][0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(new.token_logits.grad.view(-1, 2), data["grad_token_logits"], atol=1e-7, rtol=1e-4)
    if case["finite"]:
        torch.testing.assert_close(frame_advantages, data["advantages_frame"])
        torch.testing.assert_close(statistics.frame_loss, data["frame_loss"][0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(loss, data["loss"][0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(new.frame_logits.grad, data["grad_frame_logits"], atol=1e-7, rtol=1e-4)
    else:
        # The sample deviation of one rollout: published NaN, which would have gone into every weight.
        assert len(frame_advantages) == 1
        assert frame_advantages.tolist() == [0.0]
        assert loss.isfinite()
        assert (new.frame_logits.grad == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_golden_token_weights(name):
    data = with_prefix(TENSORS, f"cpo.{name}.")
    published = data["token_mask_weight"]
    expected = published / published.sum(1, keepdim=True)
    torch.testing.assert_close(balanced_weights(data["token_mask"].bool()), expected)


def test_weights_give_kept_and_dropped_half_each():
    masks = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1], [1] * 6, [0] * 6], dtype=torch.bool)
    weights = balanced_weights(masks)
    torch.testing.assert_close((weights * masks).sum(1), torch.tensor([0.5, 0.5, 0.0, 0.0]))
    torch.testing.assert_close((weights * ~masks).sum(1), torch.tensor([0.5, 0.5, 0.0, 0.0]))


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_loss_choice_by_choice(dual_clip):
    new, old, token_masks, token_advantages, frame_masks, frame_advantages = random_case()
    loss, statistics = cpo_loss(
        new, old, token_masks, token_advantages, frame_masks, frame_advantages, dual_clip=dual_clip, kl_weight=0.3
    )

    def choices(logits, old_logits, masks, scale):
        """Each subset's losses of kept and of dropped choices, one after the other, and how many gradients were stopped."""
        stopped = 0
        for mask, advantage in zip(masks.flatten(1), scale.tolist(), strict=True):
            kept, dropped = [], []
            for bit, now, before in zip(
                mask.tolist(), logits.reshape(-1, 2).tolist(), old_logits.reshape(-1, 2).tolist(), strict=True
            ):
                chance = [math.exp(x[bit]) / (math.exp(x[0]) + math.exp(x[1])) for x in (now, before)]
                ratio = chance[0] / chance[1]
                objective = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
                if dual_clip is not None and advantage < 0:
                    stopped += objective < dual_clip * advantage
                    objective = max(objective, dual_clip * advantage)
                stopped += (ratio > 1.28 and advantage > 0) or (ratio < 0.8 and advantage < 0)
                (kept if bit else dropped).append(-objective)
            yield kept, dropped, stopped

    def mean(values):
        return sum(values) / len(values)

    tokens = list(choices(new.token_logits, old.token_logits, token_masks, token_advantages))
    token_loss = mean([(mean(kept) + mean(dropped)) / 2 for kept, dropped, _ in tokens])
    frames = list(choices(new.frame_logits, old.frame_logits, frame_masks, frame_advantages))
    frame_loss = mean([mean(kept + dropped) for kept, dropped, _ in frames])
    kl = 0.0
    for logits in (new.token_logits, new.frame_logits):
        chances = [1 / (1 + math.exp(drop - keep)) for drop, keep in logits.reshape(-1, 2).tolist()]
        kl += mean([-0.5 * math.log(2 * p) - 0.5 * math.log(2 * (1 - p)) for p in chances])

    assert statistics.token_loss.item() == pytest.approx(token_loss, rel=1e-4, abs=1e-6)
    assert statistics.frame_loss.item() == pytest.approx(frame_loss, rel=1e-4, abs=1e-6)
    assert statistics.kl.item() == pytest.approx(kl, rel=1e-4)
    assert loss.item() == pytest.approx(token_loss + frame_loss + 0.3 * kl, rel=1e-4)
    total_stopped = sum(
        t[2] for t in [list(choices(new.token_logits, old.token_logits, token_masks, token_advantages))[-1]]
    )
    assert 0 < total_stopped < token_masks.numel()
    assert statistics.clip_fraction.item() == pytest.approx(total_stopped / token_masks.numel())


def test_a_step_down_the_gradient_moves_towards_the_better_subset():
    old = PolicyOutput(torch.zeros(2, 3, 2), torch.zeros(2, 2))
    new = PolicyOutput(torch.zeros(2, 3, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True))
    better = torch.tensor([[True, False, False], [False, False, True]])
    masks, frames = torch.stack([better, ~better]), torch.tensor([[True, False], [False, True]])
    loss, _ = cpo_loss(
        new, old, masks, advantages(torch.tensor([1.0, 0.0])), frames, advantages(torch.tensor([0.0, 1]))
    )
    loss.backward()
    step = PolicyOutput(-new.token_logits.grad, -new.frame_logits.grad)
    assert torch.equal(step.token_scores > 0, better)
    assert torch.equal(step.frame_scores > 0, frames[1])


def test_the_clip_is_wider_upwards_and_works_on_the_bad_side_too():
    old = PolicyOutput(torch.zeros(1, 2, 2), torch.zeros(1, 2))
    masks = torch.tensor([[[True, False]]])

    def gradient(chance, advantage):
        """Of a token that is kept, with a keep probability that was one half."""
        logits = torch.tensor([[[0.0, math.log(chance / (1 - chance))], [0.0, 0.0]]], requires_grad=True)
        loss, _ = cpo_loss(PolicyOutput(logits, torch.zeros(1, 2)), old, masks, torch.tensor([advantage]))
        loss.backward()
        return logits.grad[0, 0, 1].item()

    assert gradient(0.63, 1.0) < 0  # ratio 1.26: still pushed up
    assert gradient(0.65, 1.0) == 0  # 1.30: stopped
    assert gradient(0.41, -1.0) > 0  # 0.82: still pushed down
    assert gradient(0.39, -1.0) == 0  # 0.78: stopped
    assert gradient(0.65, -1.0) > 0  # the wrong way: never stopped
    assert gradient(0.39, 1.0) < 0


def test_the_divergence_pulls_scores_to_zero_and_is_off_by_default():
    new, old, *_ = random_case()
    nothing = torch.zeros(0, 3, 5, dtype=torch.bool), torch.zeros(0)
    loss, statistics = cpo_loss(new, old, *nothing)
    assert loss.item() == 0
    assert statistics.kl > 0
    loss, _ = cpo_loss(new, old, *nothing, kl_weight=1.0)
    loss.backward()
    scores = new.token_scores.detach()
    pull = -(new.token_logits.grad[..., 1] - new.token_logits.grad[..., 0])
    assert torch.equal(pull.sign(), -scores.sign())


def test_without_frame_rollouts_nothing_pulls_at_the_frame_head():
    new, old, token_masks, token_advantages, frame_masks, frame_advantages = random_case()
    _, with_frames = cpo_loss(new, old, token_masks, token_advantages, frame_masks, frame_advantages)
    loss, statistics = cpo_loss(new, old, token_masks, token_advantages, kl_weight=1.0)
    loss.backward()
    assert new.frame_logits.grad is None
    assert statistics.frame_loss == 0
    assert 0 < statistics.kl < with_frames.kl
    with pytest.raises(ValueError, match="Give both, or neither"):
        cpo_loss(new, old, token_masks, token_advantages, frame_masks)


@pytest.mark.parametrize("missing", ["tokens", "frames", "everything kept", "nothing kept"])
def test_degenerate_memories_give_finite_losses_and_gradients(missing):
    new, old, token_masks, token_advantages, frame_masks, frame_advantages = random_case()
    if missing == "tokens":
        token_masks, token_advantages = token_masks[:0], token_advantages[:0]
    elif missing == "frames":
        frame_masks, frame_advantages = None, None
    else:
        token_masks = torch.full_like(token_masks, missing == "everything kept")
    loss, statistics = cpo_loss(new, old, token_masks, token_advantages, frame_masks, frame_advantages)
    loss.backward()  # a graph to every head that has rollouts
    assert loss.isfinite()
    assert new.token_logits.grad.isfinite().all()
    if missing == "frames":
        assert new.frame_logits.grad is None
    else:
        assert new.frame_logits.grad.isfinite().all()
        assert (new.token_logits.grad == 0).all()
    assert all(getattr(statistics, field.name).isfinite() for field in fields(Statistics))


def test_distillation_is_zero_where_scores_are_the_teachers_and_pulls_there():
    generator = torch.Generator().manual_seed(2)
    attention = torch.rand(3, 5, generator=generator)
    tokens, frames = torch.zeros(3, 5, 2), torch.zeros(3, 2)
    tokens[..., 1], frames[..., 1] = attention.log() + 4, attention.sum(1).log() - 1  # any constant
    assert distillation_loss(PolicyOutput(tokens, frames), attention).abs() < 1e-6
    new, *_ = random_case()
    loss = distillation_loss(new, attention)
    target, scores = attention.flatten() / attention.sum(), new.token_scores.detach().flatten()
    over_frames = target.view(3, 5).sum(1)
    by_hand = (target * (target / scores.softmax(0)).log()).sum()
    by_hand += (over_frames * (over_frames / new.frame_scores.detach().softmax(0)).log()).sum()
    torch.testing.assert_close(loss.detach(), by_hand)
    loss.backward()
    # The gradient of a KL on a softmax is what it says less what it should.
    torch.testing.assert_close(new.token_logits.grad[..., 1].flatten(), scores.softmax(0) - target)
    new.frame_logits.grad = None
    distillation_loss(new, attention, frames=False).backward()
    assert new.frame_logits.grad is None
    with pytest.raises(ValueError, match=r"attention has shape \(5, 3\), the policy scored \(3, 5\)"):
        distillation_loss(new, attention.T)


@pytest.mark.parametrize("balanced", [True, False])
def test_only_unbalanced_tokens_teach_how_many(balanced):
    """Subsets of different sizes, the smaller the better: does a common shift of all scores earn anything?"""
    masks = torch.zeros(5, 1, 10, dtype=torch.bool)
    for row, count in enumerate((1, 3, 5, 7, 9)):
        masks[row, 0, :count] = True
    shift = torch.zeros((), requires_grad=True)
    logits = torch.stack(
        [torch.zeros(1, 10), torch.randn(1, 10, generator=torch.Generator().manual_seed(0)) + shift], -1
    )
    policy = PolicyOutput(logits, torch.zeros(1, 2))
    old = PolicyOutput(logits.detach(), torch.zeros(1, 2))
    loss, _ = cpo_loss(policy, old, masks, advantages(torch.arange(5, 0, -1.0)), balanced=balanced)
    loss.backward()
    if balanced:
        assert shift.grad.abs() < 0.05
    else:
        assert shift.grad > 0.2  # down the gradient, all scores fall


def test_every_token_has_its_price():
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]], dtype=torch.bool)
    rewards = torch.tensor([1.0, 1.0, 0.25])
    torch.testing.assert_close(priced(rewards, masks, 0.5), torch.tensor([0.875, 0.5, 0.25]))
    assert torch.equal(priced(rewards, masks, 0.0), rewards)


def test_equal_rewards_say_nothing():
    for reward in (0.0, 0.1, 1.0, 0.7):
        assert advantages(torch.full((23,), reward)).tolist() == [0.0] * 23
    assert advantages(torch.tensor([0.4])).tolist() == [0.0]
    assert advantages(torch.tensor([1, 0, 0])).dtype == torch.float32
    new, old, token_masks, _, frame_masks, frame_advantages = random_case()
    _, statistics = cpo_loss(new, old, token_masks, advantages(torch.ones(6)), frame_masks, frame_advantages)
    assert statistics.zero_variance == 1
    _, statistics = cpo_loss(new, old, token_masks, advantages(torch.arange(6)), frame_masks, frame_advantages)
    assert statistics.zero_variance == 0


def test_statistics_of_a_known_policy():
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, -math.log(3)]]], requires_grad=True)  # keep with 3/4 and 1/4
    output = PolicyOutput(logits, torch.zeros(1, 2, requires_grad=True))
    masks, frames = torch.tensor([[[True, False]], [[False, True]]]), torch.tensor([[True], [False]])
    scale = advantages(torch.tensor([1.0, 0.0]))
    _, statistics = cpo_loss(output, output, masks, scale, frames, scale)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert statistics.entropy.item() == pytest.approx(entropy, rel=1e-5)
    assert statistics.kl.item() == pytest.approx(-0.5 * math.log(2 * 0.75) - 0.5 * math.log(2 * 0.25), rel=1e-4)
    assert statistics.score_spread.item() == pytest.approx(math.log(3), rel=1e-5)
    assert statistics.ratio_mean == 1
    assert statistics.clip_fraction == 0
    assert all(not getattr(statistics, field.name).requires_grad for field in fields(Statistics))
    # Against a policy that kept with one half: ratios 1.5 and 1.5 for the first subset, 0.5 and 0.5 for the second.
    coin = PolicyOutput(torch.zeros(1, 2, 2), torch.zeros(1, 2))
    _, statistics = cpo_loss(output, coin, masks, scale, frames, scale)
    assert statistics.ratio_mean.item() == pytest.approx(1.0)
    assert statistics.clip_fraction == 1
    _, statistics = cpo_loss(output, coin, masks, -scale, frames, scale)
    assert statistics.clip_fraction == 0


def test_logits_and_log_probabilities_of_the_old_policy_are_alike():
    new, old, *rest = random_case()
    normalised = PolicyOutput(old.token_logits.log_softmax(-1), old.frame_logits.log_softmax(-1))
    torch.testing.assert_close(cpo_loss(new, old, *rest)[0], cpo_loss(new, normalised, *rest)[0])


@pytest.mark.parametrize("wrong", range(1, 6))
def test_shapes_that_do_not_fit(wrong):
    arguments = list(random_case())
    if wrong == 1:
        arguments[1] = PolicyOutput(torch.zeros(3, 4, 2), arguments[1].frame_logits)
    else:
        arguments[wrong] = arguments[wrong][..., :-1]
    with pytest.raises(ValueError, match=r"(token|frame)_logits .* do not fit: give \(\.\.\., 2\) twice"):
        cpo_loss(*arguments)


@pytest.mark.parametrize("case", INDEX["schedule"], ids=str)
def test_golden_ratio_schedule(case):
    start = case["max_sample_rate"]
    ratios = [start]
    for accuracy in case["accuracies_after_each_iteration"]:
        ratios.append(next_ratio(ratios[-1], accuracy, start=start))
    assert ratios == pytest.approx(case["ratio_used_at_iteration"], rel=1e-12)


def test_ratio_schedule_with_other_thresholds():
    assert next_ratio(0.04, 0.7, start=0.02, low=0.33, high=0.67) == 0.02
    assert next_ratio(0.04, 0.3, start=0.02, low=0.33, high=0.67) == 0.08
    assert next_ratio(0.04, 0.5, start=0.02, low=0.33, high=0.67) == 0.04
    assert next_ratio(0.2, 0.0, start=0.2) == 0.2  # a start above the ceiling is the ceiling
    with pytest.raises(ValueError, match=r"low=0\.9 is not under high=0\.5"):
        next_ratio(0.02, 0.5, start=0.02, low=0.9, high=0.5)


def test_dual_clip_bounds_what_a_single_choice_can_weigh():
    """A dropped frame that did badly and has become far likelier: unbounded as published, bounded and without gradient with the dual clip."""
    token_logits = torch.zeros(1, 1, 2)
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    new, old = PolicyOutput(token_logits, logits), PolicyOutput(token_logits, torch.tensor([[0.0, 20.0]]))
    tokens, none = torch.zeros(0, 1, 1, dtype=torch.bool), torch.zeros(0)
    case = (new, old, tokens, none, torch.tensor([[False]]), torch.tensor([-1.0]))
    loss, _ = cpo_loss(*case)
    assert loss > 1e8
    loss, _ = cpo_loss(*case, dual_clip=3.0)
    assert loss.item() == pytest.approx(3.0)
    loss.backward()
    assert (logits.grad == 0).all()


def test_the_pull_to_the_coin_flip_does_not_fade():
    """Twice as far out, the gradient is no smaller: scores cannot run away from it."""
    pulls = []
    for score in (5.0, 10.0):
        logits = torch.tensor([[[0.0, score]]], requires_grad=True)
        output = PolicyOutput(logits, torch.zeros(1, 2))
        nothing = torch.zeros(0, 1, 1, dtype=torch.bool), torch.zeros(0)
        cpo_loss(output, output, *nothing, kl_weight=1.0)[0].backward()
        pulls.append(logits.grad[0, 0, 1].item())
    assert pulls[1] >= pulls[0] > 0.4


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("now", [-100.0, 5.0, 100.0])
def test_a_choice_with_an_enormous_ratio_leaves_gradients_finite(rewards, now):
    """What the old policy thought impossible, chosen by none, some or all of the subsets, and better or worse than the others."""
    logits = torch.tensor([[[0.0, now], [0.0, 0.0]]], requires_grad=True)
    frames = torch.zeros(1, 2, requires_grad=True)
    old = PolicyOutput(torch.tensor([[[0.0, 100.0], [0.0, 0.0]]]), torch.zeros(1, 2))
    masks = torch.tensor([[[True, False]], [[True, True]], [[False, False]]])
    for chosen in (masks, masks[:2].repeat(2, 1, 1)[:3]):
        loss, statistics = cpo_loss(PolicyOutput(logits, frames), old, chosen, advantages(torch.tensor(rewards)))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.square().sum().isfinite()
        assert statistics.ratio_mean.isfinite()
        assert (gradient[0, 1] != 0).any() == (len(set(rewards)) > 1)


def test_advantages_of_several_rewards_are_added_by_weight():
    """Worked out by hand: each is normalised by itself, and one that is the same for all adds nothing."""
    answers, price = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.9, 0.5, 0.1])
    found = summed_advantages([answers, price, torch.ones(3)], [1.0, 0.5, 7.0])
    spread = (1 / 3) ** 0.5  # of 1, 0, 1
    expected = [(1 / 3) / spread + 0.5, (-2 / 3) / spread, (1 / 3) / spread - 0.5]
    assert found.tolist() == pytest.approx(expected, abs=2e-3)
    assert torch.equal(summed_advantages([answers], [1.0]), advantages(answers))
