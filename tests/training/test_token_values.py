"""Values of single tokens: the draws, the regression, the loss, and the learner of the trainer."""

import json
import re
from math import inf

import pytest
import torch
from helpers import small_training
from helpers.launching import launch
from helpers.models import Video, prompt_inputs
from helpers.small_training import Collator, Gradients, assert_same_policy, counted, trainer

from cacovid_hf.policies.base import PolicyOutput
from cacovid_hf.training.arguments import OBJECTIVES, ContributionTrainingArguments
from cacovid_hf.training.presets import CONTRIBUTIONS
from cacovid_hf.training.resuming import TOKEN_VALUES, last_complete_checkpoint
from cacovid_hf.training.rewards import Completion
from cacovid_hf.training.token_values import TokenValues, draw_among_likely, ranking_loss, token_values
from cacovid_hf.training.trainer import LEARNERS, ContributionTrainer

SETTINGS = {"objective": "contributions", "num_frame_rollouts": 0}


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


# ---------------------------------------------------------------- the trainer


def test_every_objective_has_a_learner():
    assert tuple(LEARNERS) == OBJECTIVES


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_sample_is_answered_once_and_learnt_in_every_pass(tmp_path, num_iterations):
    _, _, engine = trainer(tmp_path, **SETTINGS, num_iterations=num_iterations, steps=12, samples=4)
    asked, measured, losses_of = counted(engine), [], engine.learner.losses

    def spy(memory, header, outputs):
        losses = losses_of(memory, header, outputs)
        measured.append({video.index: video.measured for video in memory.videos})
        return losses

    engine.learner.losses = spy
    before = engine.backbone.state_dict()["lm_head.weight"].clone()
    engine.train()
    # Two batches of two samples, six subsets each.
    assert asked == [12, 12]
    assert len(measured) == 12
    first = measured[0] | measured[num_iterations]
    assert set(first) == {0, 1, 2, 3}
    for index, found in (item for batch in measured for item in batch.items()):
        assert torch.equal(found.tokens, first[index].tokens)
        assert torch.equal(found.values, first[index].values)
    assert torch.equal(engine.backbone.state_dict()["lm_head.weight"], before)


def test_a_sample_is_answered_once_where_the_teacher_ends_within_a_pass(tmp_path):
    """Batches then mix samples that are known with such as are not."""
    _, _, engine = trainer(
        tmp_path, **SETTINGS, num_iterations=1, samples=8, steps=16, teacher="attention", teacher_steps=2
    )
    asked = counted(engine)
    engine.train()
    assert sum(asked) == 8 * 6
    engine.train()
    assert sum(asked) == 2 * 8 * 6, "another run begins from nothing"


def test_harm_weighs_what_is_learnt_and_not_what_is_measured(tmp_path):
    losses, values = [], []
    for harm_weight in (1.0, 0.0):
        _, _, engine = trainer(tmp_path, **SETTINGS, num_iterations=1, samples=4, steps=1, harm_weight=harm_weight)
        of_learner = engine.learner.losses

        def spy(memory, header, outputs, of_learner=of_learner):
            found = of_learner(memory, header, outputs)
            losses.append(torch.stack(found).sum().item())
            values.append(torch.cat([video.measured.values for video in memory.videos]))
            return found

        engine.learner.losses = spy
        engine.train()
    assert torch.equal(*values)
    assert (values[0] < 0).any()
    assert losses[1] < losses[0]


def test_what_is_kept_of_a_sample_is_small(tmp_path):
    _, likely = draw_among_likely(torch.randn(8, 36, generator=seeded()), 5 / 288, 24, generator=seeded())
    assert likely.untyped_storage().nbytes() == 10 * 8


def test_samples_of_a_stream_are_answered_in_every_pass(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(2))

    _, _, engine = trainer(tmp_path, **SETTINGS, num_iterations=1, steps=3, samples=Stream())
    asked = counted(engine)
    engine.train()
    assert asked == [12, 12, 12]


def test_the_policy_learns_which_token_the_answer_hangs_on(tmp_path):
    """Answers that are likely exactly if a token was kept put that token first, though the policy began with three others before it."""
    model, _, engine = trainer(
        tmp_path, **SETTINGS, num_iterations=1, steps=48, samples=1, learning_rate=1e-2, num_token_rollouts=24
    )
    needed, measure = [], engine.learner.measure

    def spy(memory, header):
        (video,) = memory.videos
        if not needed:
            needed.append(int(video.old.token_scores.flatten().argsort(descending=True)[3]))
        place = memory.prompt.layout.videos[0].positions[needed[0]]
        engine.examiner.answer = lambda prompts, questions: [
            Completion("", 0.9 if place in kept else 0.1) for kept in prompts.kept_indices
        ]
        measure(memory, header)

    engine.learner.measure = spy
    engine.train()
    (memory,) = engine._memories.values()
    with torch.no_grad():
        (found,) = model.policy(memory.prompt.inputs_embeds, memory.prompt.position_ids, memory.prompt.layout)
    assert needed == [found.token_scores.flatten().argmax()]
    measured = memory.videos[0].measured
    assert measured.tokens[measured.values.argmax()] == needed[0]


class TwoSizes(Collator):
    """Videos of 4 and of 6 frames, in prompts that do not depend on what else is in a batch."""

    def __call__(self, samples):
        batch = super().__call__(samples)
        good = [samples[place] for place in batch["places"]]
        rows = {n: [[3, Video(4 + 2 * (n % 2)), 4 + n % 3]] for n in good}
        return {**batch, "inputs": [prompt_inputs(self.model, row, seed=n) for n, row in rows.items()]}


def test_batches_of_two_sizes_of_video_are_learnt_from_as_one_by_one(tmp_path):
    """Two passes; one sample cannot be read."""
    runs = []
    for size, accumulation in ((4, 1), (1, 4)):
        watch = Gradients()
        _, collator, engine = trainer(
            tmp_path,
            **SETTINGS,
            num_iterations=1,
            samples=7,
            broken=[5],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            steps=4,
            callbacks=[watch],
        )
        collator.__class__ = TwoSizes
        asked = counted(engine)
        engine.train()
        assert sum(asked) == 6 * 6
        runs.append(watch.seen)
    for ours, theirs in zip(*runs, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in ours.values())
        assert largest > 0
        for name, gradient in ours.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=3e-4 * largest)


# ---------------------------------------------------------------- checkpoints

SAVED = SETTINGS | dict(num_iterations=1, steps=8, samples=4, save_strategy="steps", save_steps=3)


def test_a_resumed_run_measures_nothing_again_and_ends_alike(tmp_path):
    """Step 3 is within the second pass."""
    whole, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert TOKEN_VALUES in json.loads((checkpoint / "checksums.json").read_text())
    resumed, _, engine = trainer(tmp_path, **SAVED)
    asked = counted(engine)
    engine.train(resume_from_checkpoint=str(checkpoint))
    assert asked == []
    assert engine.state.global_step == 8
    assert_same_policy(whole, resumed)
    engine.save_model(str(tmp_path / "end"))
    assert not (tmp_path / "end" / TOKEN_VALUES).exists()


def test_a_checkpoint_without_values_is_resumed_and_measured_again(tmp_path, caplog):
    _, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / TOKEN_VALUES).unlink()
    (checkpoint / "checksums.json").unlink()
    _, _, engine = trainer(tmp_path, **SAVED)
    asked = counted(engine)
    with caplog.at_level("WARNING"):
        engine.train(resume_from_checkpoint=str(checkpoint))
    assert sum(asked) == 4 * 6
    assert f"{checkpoint} has no {TOKEN_VALUES}. Its samples are measured again." in caplog.text


class InterruptedWhileSaving(ContributionTrainer):
    """Ends while the checkpoint of step 6 is written, behind the values."""

    def write_checkpoint(self, folder, state_dict):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        super().write_checkpoint(folder, state_dict)


def test_a_checkpoint_is_complete_with_its_values_only(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, kind=InterruptedWhileSaving, **SAVED)[2].train()
    assert (tmp_path / "checkpoint-6" / TOKEN_VALUES).exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_a_sample_of_another_size_is_measured_again(tmp_path):
    """Others are not, whose number of tokens is the same."""
    _, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    _, collator, engine = trainer(tmp_path, **SAVED)
    collator.__class__ = TwoSizes  # odd samples now have 6 frames, as the even ones had 4
    asked = counted(engine)
    engine.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert sum(asked) == 2 * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "accuracy"}, "reward=probability, now it is accuracy"),
        ({"steps": 16}, "teacher_steps=2, now it is 4"),
    ],
)
def test_a_run_of_other_values_is_not_resumed(change, message, tmp_path):
    taught = SAVED | {"teacher": "attention", "teacher_steps": 0.25}
    trainer(tmp_path, **taught)[2].train()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **(taught | change))[2].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_teacher_that_is_followed_to_the_end_of_the_passes_is_refused(tmp_path):
    settings = {"teacher": "attention", "teacher_steps": 4, "num_iterations": 1, "num_train_epochs": 2}
    with pytest.raises(ValueError, match="objective='contributions' is never reached"):
        trainer(tmp_path, **SETTINGS, **settings, steps=-1, samples=4)
    trainer(tmp_path, **SETTINGS, **(settings | {"num_train_epochs": 3}), steps=-1, samples=4)


def test_damaged_values_are_not_resumed_from(tmp_path):
    _, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-3"
    content = (checkpoint / TOKEN_VALUES).read_bytes()
    (checkpoint / TOKEN_VALUES).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{TOKEN_VALUES} is damaged"):
        trainer(tmp_path, **SAVED)[2].train(resume_from_checkpoint=str(checkpoint))


def test_values_before_the_first_sample_and_of_streams_are_none(tmp_path):
    _, _, engine = trainer(tmp_path, **SETTINGS)
    engine.learner._known.put(None, 5, torch.arange(2), torch.zeros(2))
    engine.learner.save(tmp_path)
    engine.learner.begin(str(tmp_path))
    assert len(engine.learner._known) == 0


@pytest.mark.slow
def test_two_processes_share_what_they_measured(tmp_path):
    """As one process that accumulates twice as long, over two passes in which samples change processes; one sample cannot be read."""
    done = launch(
        small_training.__file__, "--out", tmp_path, "--samples", 7, "--broken", 5, "--objective", "contributions"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "result.pt", weights_only=False)
    watch = Gradients()
    _, _, one = trainer(
        tmp_path / "one",
        **SETTINGS,
        num_iterations=1,
        samples=7,
        broken=[5],
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        callbacks=[watch],
    )
    asked = counted(one)
    one.train()
    assert sum(asked) == 6 * 6
    assert two["rollouts"] == 6 * 6
    assert len(two["gradients"]) == len(watch.seen) == 8
    for theirs, ours in zip(two["gradients"], watch.seen, strict=True):
        for name, gradient in ours.items():
            scale = gradient.abs().max()
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=float(1e-4 * scale + 1e-9))


# ---------------------------------------------------------------- settings


def test_contributions_follow_a_teacher(tmp_path):
    _, _, engine = trainer(
        tmp_path, **SETTINGS, teacher="attention", teacher_steps=4, num_iterations=2, steps=8, samples=2
    )
    engine.train()
    entries = [entry for entry in engine.state.log_history if "loss" in entry]
    assert ["teacher_loss" in entry for entry in entries] == [True] * 4 + [False] * 4
    assert ["ranking_loss" in entry for entry in entries] == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "banzhaf"}, "objective='banzhaf' is unknown. Choose one of 'cpo', 'contributions'."),
        (
            {"num_frame_rollouts": 8},
            "num_frame_rollouts=8 has no effect with objective='contributions'. Leave it out (0)",
        ),
        ({"retention_weight": 0.5}, "retention_weight=0.5 has no effect with objective='contributions'"),
        ({"teacher": "attention"}, "objective='contributions' is never reached"),
        ({"teacher": "attention", "teacher_steps": 40, "max_steps": 40}, "objective='contributions' is never reached"),
        ({"token_price": 1.0, "sampler": "bernoulli"}, "sampler='bernoulli', token_price=1.0 has no effect"),
        ({"sampling_ratio": 0.5}, "sampling_ratio=0.5 leaves no unlikely tokens"),
        ({"num_token_rollouts": 2}, "num_token_rollouts=2 tells nothing"),
        ({"kl_weight": 0.05}, "kl_weight=0.05 has no effect with objective='contributions'. Leave it out, or choose"),
        ({"sampler": "random", "replay": False}, "sampler='random', replay=False has no effect"),
        ({"dynamic_ratio": False}, "dynamic_ratio=False has no effect"),
        ({"harm_weight": 1.5}, "harm_weight=1.5 is outside [0, 1]"),
        ({"objective": "cpo", "harm_weight": 0.25}, "harm_weight=0.25 has no effect with objective='cpo'"),
        ({"objective": "cpo", "least_value": 0.1}, "least_value=0.1 has no effect with objective='cpo'. Leave it out"),
        ({"teacher": "attention", "teacher_steps": float("nan")}, "teacher_steps=nan is not a number of steps"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ContributionTrainingArguments(str(tmp_path), **(SETTINGS | settings))


def test_the_preset_goes_on_from_a_policy_or_begins_with_a_teacher(tmp_path):
    taught = ContributionTrainingArguments(str(tmp_path), **CONTRIBUTIONS)
    untaught = {"teacher": None, "teacher_query": "question", "teacher_steps": None}
    alone = ContributionTrainingArguments(str(tmp_path), **(CONTRIBUTIONS | untaught))
    assert alone.objective == taught.objective == "contributions"
    assert (taught.taught_steps(400), alone.taught_steps(400)) == (160, 0)


@pytest.mark.parametrize(
    ("given", "iterations", "steps"), [(0.4, 1, 40), (0.4, 3, 39), (0.001, 1, 0), (1, 1, 1), (6, 3, 6), (None, 3, inf)]
)
def test_the_steps_of_a_teacher_are_a_number_or_a_share(tmp_path, given, iterations, steps):
    args = ContributionTrainingArguments(
        str(tmp_path), teacher="attention", teacher_steps=given, num_iterations=iterations
    )
    assert args.taught_steps(100) == steps


def test_a_share_of_the_steps_follows_the_teacher(tmp_path):
    settings = {"teacher": "attention", "teacher_steps": 0.5, "num_iterations": 1}
    _, _, engine = trainer(tmp_path, **SETTINGS, **settings, steps=5, samples=2)
    engine.train()
    entries = [entry for entry in engine.state.log_history if "loss" in entry]
    assert ["teacher_loss" in entry for entry in entries] == [True] * 2 + [False] * 3
