"""The trainer moves the policy and nothing else, in the order of the mathematics; small random models, a few steps."""

import math
from itertools import islice

import pytest
import torch
from helpers.models import Video, stock_model
from helpers.small_training import Collator, Gradients, prompt_inputs, scored_question, trainer

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors.attention import video_attention
from cacovid_hf.training.arguments import ContributionTrainingArguments
from cacovid_hf.training.batches import BatchHeader, SampleBatches
from cacovid_hf.training.presets import OURS
from cacovid_hf.training.rewards import Completion


@pytest.mark.parametrize(
    "settings",
    [{}, OURS | {"num_token_rollouts": 6, "num_frame_rollouts": 0}, {"sampler": "random", "dynamic_ratio": False}],
)
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_the_policy_moves_and_the_backbone_does_not(tmp_path, family, settings):
    model, collator, engine = trainer(tmp_path, family, **settings)
    backbone = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    policy = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    engine.train()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in model.backbone.state_dict().items())
    moved = {name for name, tensor in model.policy.state_dict().items() if not torch.equal(tensor, policy[name])}
    still = {name for name in policy if name.startswith("frame_head") and settings.get("num_frame_rollouts") == 0}
    assert moved == set(policy) - still
    assert not model.backbone.training
    assert not any(weight.requires_grad for weight in model.backbone.parameters())
    # Each batch is read once for its iterations.
    assert collator.calls <= 8 / engine.args.num_iterations + 3
    logged = engine.state.log_history[0]
    assert {
        "reward",
        "greedy_reward",
        "sampling_ratio",
        "clip_fraction",
        "entropy",
        "score_spread",
        "zero_variance",
        "kl",
    } <= set(logged)
    assert 0 <= logged["reward"] <= 1
    assert logged["ratio_mean"] == pytest.approx(1.0, abs=1e-5)


SWITCHES = {
    "no frame rollouts": {"num_frame_rollouts": 0, "kl_weight": 0.1},
    "no replay": {"replay": False},
    "several ratios": {"target_ratios": (0.1, 0.4)},
    "narrow thresholds": {"ratio_low": 0.33, "ratio_high": 0.67},
    "large groups": {"group_spread": 4.0, "group_cap": 9.0},
    "ocss over the video": {"sampling_scope": "video"},
    "multinomial by frame": {"sampler": "multinomial"},
    "whole answers": {"reward": "accuracy", "kl_weight": 0.1},
    "bernoulli": {"sampler": "bernoulli", "token_price": 0.5, "num_frame_rollouts": 0},
    "retention": {"retention_weight": 0.5, "retention_floor": 0.0},
    "attention teacher": {"teacher": "attention"},
    "attention teacher, one layer": {"teacher": "attention", "teacher_layer": 1, "num_frame_rollouts": 0},
    "attention teacher, last token": {"teacher": "attention", "teacher_query": "last"},
    "by reward": {
        "advantage": "by_reward",
        "sampler": "bernoulli",
        "token_price": 0.5,
        "retention_weight": 0.5,
    },
    "by token": {"advantage": "by_token", "sampler": "bernoulli"},
    "light": {"policy_type": "light"},
    "residual": {"policy_type": "residual"},
    "residual, blind": {"policy_type": "residual", "policy_attention": "none", "num_frame_rollouts": 0},
    "causal": {"policy_attention": "causal"},
    "bidirectional": {"policy_attention": "bidirectional"},
    "question": {"policy_attention": "question"},
}


@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_trains(tmp_path, settings):
    model, _, engine = trainer(tmp_path, steps=4, **settings)
    policy = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    engine.train()
    trained = model.policy.state_dict()
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert any(not torch.equal(tensor, policy[name]) for name, tensor in trained.items() if "token_head" in name)
    frozen = {name for name in policy if name.startswith("frame_head") and torch.equal(policy[name], trained[name])}
    assert bool(frozen) == (settings.get("num_frame_rollouts") == 0)
    losses = [entry["loss"] for entry in engine.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert model.policy.attention == model.config.policy_attention == settings.get("policy_attention", "question")


def test_a_new_policy_begins_from_layer_0_and_its_seed(tmp_path):
    model, _, engine = trainer(tmp_path, policy_attention="causal", seed=5)
    again, _, _ = trainer(tmp_path, policy_attention="causal", seed=5)
    other, _, _ = trainer(tmp_path, policy_attention="causal", seed=6)
    layer = model.backbone.get_decoder().layers[0]
    assert torch.equal(model.policy.layer.self_attn.q_proj.weight, layer.self_attn.q_proj.weight)
    assert torch.equal(model.policy.layer.mlp.down_proj.weight, layer.mlp.down_proj.weight)
    assert torch.equal(model.policy.token_head[0].weight, again.policy.token_head[0].weight)
    assert not torch.equal(model.policy.token_head[0].weight, other.policy.token_head[0].weight)
    assert engine.model is model.policy
    assert not model.config.policy_trained


def test_target_ratios_are_drawn_by_sample_and_kept(tmp_path):
    _, _, engine = trainer(tmp_path, target_ratios=[0.125, 0.5], num_iterations=2, steps=8)
    seen = []
    roll_out = engine.learner.roll_out

    def spy(memory, header):
        roll_out(memory, header)
        seen.append([(video.ratio, video.tokens.masks.flatten(1).sum(1)) for video in memory.videos])

    engine.learner.roll_out = spy
    engine.train()
    assert {ratio for batch in seen for ratio, _ in batch} == {0.125, 0.5}
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert [ratio for ratio, _ in first] == [ratio for ratio, _ in second]
    for ratio, counts in (entry for batch in seen for entry in batch):
        # 4 frames of 4 tokens.
        assert set(counts.tolist()) == {4 * max(1, round(4 * ratio))}


def test_a_price_makes_the_policy_keep_fewer_tokens(tmp_path):
    """With answers that no token changes, what is left of the reward is the price."""
    kept = {}
    for price in (0.0, 100.0):
        torch.manual_seed(0)
        _, _, engine = trainer(
            tmp_path, sampler="bernoulli", token_price=price, num_frame_rollouts=0, steps=30, learning_rate=1e-2
        )
        engine.train()
        kept[price] = [entry["kept_ratio"] for entry in engine.state.log_history if "kept_ratio" in entry]
    assert sum(kept[100.0][-4:]) < 0.8 * sum(kept[0.0][-4:])
    assert sum(kept[100.0][-4:]) < 0.8 * sum(kept[100.0][:4])


def test_advantages_are_split_in_three_ways(tmp_path):
    """From one seed the first rollouts are the same, and the gradients that follow are not."""
    masks, gradients = {}, {}
    common = {"sampler": "bernoulli", "token_price": 0.5, "max_grad_norm": 0.0}
    for advantage in ("joint", "by_token", "by_reward"):
        watch = Gradients()
        _, _, engine = trainer(tmp_path, steps=2, advantage=advantage, callbacks=[watch], **common)
        engine.train()
        (memory,) = engine._memories.values()
        masks[advantage] = memory.videos[0].tokens.masks[:6]
        gradients[advantage] = watch.seen[0]["token_head.0.weight"]
    assert torch.equal(masks["joint"], masks["by_token"])
    assert torch.equal(masks["joint"], masks["by_reward"])
    for one, two in (("joint", "by_token"), ("joint", "by_reward"), ("by_token", "by_reward")):
        assert not torch.allclose(gradients[one], gradients[two], rtol=1e-2)


def test_each_reward_has_an_advantage_of_its_own(tmp_path):
    """Answers that all earn the same leave the price alone, at its full size."""
    _, _, engine = trainer(
        tmp_path, steps=1, num_iterations=1, advantage="by_reward", sampler="bernoulli", token_price=0.01
    )
    engine.examiner.answer = lambda prompts, questions: [Completion("wrong", 0.5)] * len(questions)
    engine.train()
    (memory,) = engine._memories.values()
    for video in memory.videos:
        kept = video.tokens.masks.flatten(1).float().mean(1)
        expected = 0.01 * (kept.mean() - kept) / (kept.std() + 1e-4)
        torch.testing.assert_close(engine.learner.advantages(video.tokens), expected, atol=1e-5, rtol=1e-3)
        assert engine.learner.advantages(video.frames).tolist() == [0, 0, 0]


def test_the_policy_comes_to_agree_with_its_teacher(tmp_path):
    _, _, engine = trainer(tmp_path, teacher="attention", teacher_layer=1, steps=40, learning_rate=1e-2, samples=2)
    engine.train()
    losses = [entry["teacher_loss"] for entry in engine.state.log_history if "teacher_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert all("reward" not in entry for entry in engine.state.log_history)


@pytest.mark.parametrize("query", ["question", "last"])
def test_the_teacher_is_the_attention_of_the_query(tmp_path, query):
    model, _, engine = trainer(tmp_path, teacher="attention", teacher_query=query, num_iterations=1, steps=1)
    seen = []
    imitate = engine.imitation.losses

    def spy(memory, *arguments):
        losses = imitate(memory, *arguments)
        seen.append((memory.prompt, memory.videos[0].attention))
        return losses

    engine.imitation.losses = spy
    engine.train()
    prompt, attention = seen[0]
    layers = range(model.backbone.get_decoder().config.num_hidden_layers)
    with torch.no_grad():
        read = {one: video_attention(model, prompt, layers, one) for one in ("question", "last")}
    means = {one: torch.stack([found[layer][0] for layer in layers]).mean(0) for one, found in read.items()}
    torch.testing.assert_close(attention, means[query])
    assert not torch.allclose(means["question"], means["last"], rtol=1e-3)


def test_rollouts_follow_the_teacher(tmp_path):
    """Samples that came in before `teacher_steps` are imitated for all their iterations, the later ones explored."""
    _, _, engine = trainer(
        tmp_path, teacher="attention", teacher_steps=4, num_iterations=2, steps=8, samples=2, logging_steps=1
    )
    engine.train()
    entries = [entry for entry in engine.state.log_history if "loss" in entry]
    assert [("teacher_loss" in entry, "reward" in entry) for entry in entries] == [(True, False)] * 4 + [
        (False, True)
    ] * 4


@pytest.mark.parametrize("replay", [True, False])
def test_replay_is_what_advantages_are_over(tmp_path, replay):
    _, _, engine = trainer(tmp_path, replay=replay, num_iterations=3, steps=3)
    sizes = []
    roll_out = engine.learner.roll_out

    def spy(memory, header):
        roll_out(memory, header)
        for rollouts in ([video.tokens for video in memory.videos], [video.frames for video in memory.videos]):
            sizes.append({len(part) for some in rollouts for part in (some.masks, some.rewards)})

    engine.learner.roll_out = spy
    engine.train()
    factors = [1, 2, 3] if replay else [1, 1, 1]
    assert sizes == [{size * factor} for factor in factors for size in (6, 3)]


def test_a_retention_reward_is_relative_to_the_uncompressed_models_answer(tmp_path):
    """The whole prompt is answered once a sample; token and frame rollouts are groups of their own."""
    _, _, engine = trainer(tmp_path, retention_weight=0.5, num_iterations=2, steps=2, replay=False, samples=2)
    asked, remembered = [], []

    def answer(prompts, questions):
        asked.append(prompts.attention_mask.sum(1).tolist())
        if len(questions) == 2:  # the whole prompts: the first sample's answer is right
            return [Completion(questions[0].solution, 0.9), Completion("wrong", 0.1)]
        right = [True] * 5 + [False] + [True] * 2 + [False]  # 5 of 6 token rollouts, 2 of 3 frame rollouts
        return [Completion(q.solution if r else "wrong", 0.5) for q, r in zip(questions, right * 2, strict=True)]

    engine.examiner.answer = answer
    roll_out = engine.learner.roll_out

    def spy(memory, header):
        roll_out(memory, header)
        remembered.append([(video.tokens.rewards.tolist(), video.frames.rewards.tolist()) for video in memory.videos])

    engine.learner.roll_out = spy
    engine.train()
    assert [len(lengths) for lengths in asked] == [18, 2, 18]
    assert min(asked[1]) > max(asked[0])
    # 0.5 * (5 / 6 - 0.6) and 0.5 * (2 / 3 - 0.6) on top of the probability.
    tokens, frames = 0.5 + 0.5 * (5 / 6 - 0.6), 0.5 + 0.5 * (2 / 3 - 0.6)
    for iteration in remembered:
        first, second = iteration
        assert first[0] == pytest.approx([tokens] * 5 + [0.5])
        assert first[1] == pytest.approx([frames] * 2 + [0.5])
        assert second == ([0.5] * 6, [0.5] * 3)  # where the uncompressed model is wrong, nothing
    assert {entry["full_accuracy"] for entry in engine.state.log_history if "full_accuracy" in entry} == {0.5}


def test_without_frame_rollouts_there_are_no_frames_in_the_memory(tmp_path):
    _, _, engine = trainer(tmp_path, num_frame_rollouts=0, num_iterations=3, steps=3)
    engine.train()
    (memory,) = engine._memories.values()
    assert [video.frames for video in memory.videos] == [None, None]
    assert [len(video.tokens.masks) for video in memory.videos] == [3 * 6, 3 * 6]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_accuracy_in_between_is_the_models(tmp_path, family):
    samples = list(range(100, 105))
    _, collate, engine = trainer(tmp_path, family, eval_dataset=samples, eval_ratios=[1.0, 0.25])
    engine.backbone.generation_config.suppress_tokens = None
    first = {}
    for start in range(0, len(samples), 2):
        batch = collate(samples[start : start + 2])
        ids = engine.backbone.generate(**batch["inputs"][0], max_new_tokens=2, do_sample=False)[:, -2:]
        for place, answer in enumerate(ids):
            first[start + place] = answer
    # The first, third and fifth question are answered as the model does, with one token or two.
    engine.eval_collator = Answered(collate, first)
    right = engine.evaluate()
    assert right["eval_accuracy_at_1"] == pytest.approx(3 / 5)
    assert right["eval_accuracy"] == pytest.approx((right["eval_accuracy_at_1"] + right["eval_accuracy_at_0.25"]) / 2)
    assert right["eval_samples"] == 5
    both = engine.evaluate({"a": samples[:2], "b": samples[2:]})
    assert both["eval_a_accuracy_at_1"] == pytest.approx(1 / 2)
    assert both["eval_b_samples"] == 3


class Answered:
    """Makes every other answer what the model says, and the others what it does not."""

    def __init__(self, collate, answers):
        self.collate, self.answers = collate, answers

    def __call__(self, samples):
        batch = self.collate(samples)
        questions = []
        for number in samples:
            answer = self.answers[number - 100][: 1 + number % 3 % 2]
            questions.append(scored_question(answer if number % 2 == 0 else (answer + 1) % 100))
        return {**batch, "questions": questions}


def test_broken_samples_are_skipped_and_counted(tmp_path):
    # All of the first step's samples, whichever order the seed gives, and the others now and then.
    _, _, engine = trainer(tmp_path, samples=8, broken=range(5))
    engine.train()
    assert engine.state.global_step == 8
    assert engine.state.log_history[-2]["skipped_samples"] == 5


def test_what_was_skipped_is_in_the_last_log_and_in_the_evaluations(tmp_path):
    _, _, engine = trainer(
        tmp_path, samples=8, broken=[1, 2, 101], logging_steps=100, eval_dataset=[100, 101, 102], eval_ratios=[0.5]
    )
    engine.train()
    assert engine.state.log_history[-1]["skipped_samples"] == 2
    assert 0 <= engine.state.log_history[-1]["reward"] <= 1
    found = engine.evaluate()
    assert (found["eval_samples"], found["eval_skipped_samples"]) == (2, 1)


@pytest.mark.parametrize(("samples", "tried"), [(200, 100), (6, 6)])
def test_data_that_cannot_be_read_at_all_ends_training(tmp_path, samples, tried):
    _, _, engine = trainer(tmp_path, samples=samples, steps=300, broken=range(200))
    with pytest.raises(ValueError, match=rf"None of {tried} samples can be read \(sample \d+: broken\)"):
        engine.train()


def test_a_run_that_has_read_nothing_is_no_success(tmp_path):
    _, _, engine = trainer(tmp_path, samples=50, steps=4, broken=range(50))
    with pytest.raises(ValueError, match="None of 4 samples could be read, and nothing was learnt"):
        engine.train()


@pytest.mark.parametrize("steps", [10, 8], ids=["in the middle", "at the end"])
def test_broken_samples_after_a_resumption_are_not_all_there_is(steps, tmp_path, monkeypatch):
    monkeypatch.setattr("cacovid_hf.training.engine._HOPELESS", 4)
    settings = dict(samples=16, steps=steps, save_strategy="steps", save_steps=6)
    _, _, engine = trainer(tmp_path, **settings)
    engine.train()
    coming = [batch[1:] for batch in engine._batches][6]
    _, _, engine = trainer(tmp_path, broken=coming, **settings)
    engine.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-6")
    assert engine.state.global_step == steps
    assert engine.state.log_history[-1]["skipped_samples"] == 2


def test_same_seed_same_weights(tmp_path):
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model, _, engine = trainer(tmp_path)
        engine.train()
        runs.append(model.policy.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_the_checkpoint_is_the_models_own_kind(tmp_path):
    model, _, engine = trainer(tmp_path)
    engine.train()
    engine.save_model(str(tmp_path / "m"))
    loaded = CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "m", backbone=stock_model("llava_onevision"))
    assert loaded.config.policy_trained
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor)
    assert engine.processor.saved == str(tmp_path / "m")


def test_the_layer_learns_at_its_own_rate(tmp_path):
    _, _, engine = trainer(tmp_path, layer_learning_rate_factor=0.25)
    heads, layer = engine.create_optimizer().param_groups
    assert layer["lr"] == pytest.approx(0.25 * heads["lr"])
    assert len(layer["params"]) == len(list(engine.model.layer.parameters()))
    assert len(heads["params"]) + len(layer["params"]) == len(list(engine.model.parameters()))


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["bfloat16 backbone", "mixed precision"])
def test_the_policy_is_trained_in_float32(tmp_path, monkeypatch, settings):
    if not settings:
        monkeypatch.setattr("helpers.small_training.stock_model", lambda family: stock_model(family).bfloat16())
    model, _, engine = trainer(tmp_path, steps=4, eval_dataset=[100, 101], eval_ratios=[0.5], **settings)
    backbone = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    logits = set()
    model.policy.register_forward_hook(
        lambda policy, args, outputs: logits.update(x.dtype for o in outputs for x in (o.token_logits, o.frame_logits))
    )
    engine.train()
    assert logits == {torch.float32}
    assert {weight.dtype for weight in model.policy.parameters()} == {torch.float32}
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in model.backbone.state_dict().items())
    assert all(weight.isfinite().all() for weight in model.policy.parameters())
    assert engine.evaluate()["eval_samples"] == 2
    # No wrapper of mixed precision stays on the model.
    assert model.policy.forward.__func__ is type(model.policy).forward


class OneByOne(Collator):
    """Prompts that do not depend on what else is in a batch."""

    def __call__(self, samples):
        batch = super().__call__(samples)
        good = [samples[place] for place in batch["places"]]
        return {**batch, "inputs": [prompt_inputs(self.model, [[3, Video(), 4 + n % 3]], seed=n) for n in good]}


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
    """The last step of a pass has 3 samples of 4, and one sample cannot be read: each of the others weighs the same."""
    runs = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        watch = Gradients()
        _, collator, engine = trainer(
            tmp_path,
            samples=7,
            broken=[5],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            steps=4,
            callbacks=[watch],
        )
        collator.__class__ = OneByOne
        engine.train()
        runs.append(watch.seen)
    for other in runs[1:]:
        for ours, theirs in zip(runs[0], other, strict=True):
            largest = max(float(gradient.abs().max()) for gradient in ours.values())
            for name, gradient in ours.items():
                torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=3e-4 * largest)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, size):
        self.size, self.passes = size, []

    def set_epoch(self, epoch):
        self.passes.append(epoch)

    def __iter__(self):
        return iter(range(self.size))


def test_batches_repeat_step_by_step():
    batches = SampleBatches(list(range(5)), batch_size=1, batches_per_step=2, repeats=3)
    seen = list(batches)
    assert seen[:4] == [
        [BatchHeader(0, 0, 0, (0,), (0,)), 0],
        [BatchHeader(0, 1, 0, (1,), (1,)), 1],
        [BatchHeader(1, 0, 0, (0,), (0,))],
        [BatchHeader(1, 1, 0, (1,), (1,))],
    ]
    assert seen[-2:] == [[BatchHeader(2, 0, 0, (4,), (4,))], [BatchHeader(2, 1, 0, (), ())]]
    assert len(seen) == len(batches) == 3 * 2 * 3


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_processes_share_what_one_process_accumulates(shuffle_seed):
    settings = dict(batch_size=2, repeats=2, shuffle_seed=shuffle_seed)
    one = list(SampleBatches(list(range(11)), batches_per_step=4, **settings))
    first, second = (
        list(SampleBatches(list(range(11)), batches_per_step=2, num_processes=2, process_index=index, **settings))
        for index in range(2)
    )
    assert len(first) == len(second)
    together = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert [(b[0].numbers, b[1:]) for b in together] == [(b[0].numbers, b[1:]) for b in one]
    assert sorted(sample for batch in one for sample in batch[1:]) == list(range(11))


def test_each_pass_has_its_own_order():
    batches = SampleBatches(list(range(20)), batch_size=20, shuffle_seed=0)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append(next(iter(batches))[1:])
        assert orders[-1] == list(next(iter(batches))[0].indices)
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(20))


def test_a_stream_is_read_again_and_again():
    stream = Stream(3)
    batches = SampleBatches(stream, batch_size=2, shuffle_seed=0)
    seen = list(islice(batches, 5))
    assert [batch[1:] for batch in seen] == [[0, 1], [2], [0, 1], [2], [0, 1]]
    assert [batch[0].epoch for batch in seen] == [0, 0, 1, 1, 2]
    assert stream.passes == [0, 1, 2]
    with pytest.raises(TypeError):
        len(batches)
    assert len(list(SampleBatches(stream, batch_size=2))) == 2
    with pytest.raises(ValueError, match="stream of samples is empty"):
        next(iter(SampleBatches(Stream(0), batch_size=1, shuffle_seed=0)))


def test_passes_that_end_within_a_samples_iterations_are_refused(tmp_path):
    settings = dict(steps=-1, samples=6, num_iterations=4)
    with pytest.raises(
        ValueError,
        match=r"num_train_epochs=0\.5 is 6 steps, which ends within the 4 iterations on a sample \(num_iterations\)\. Give a multiple, such as max_steps=8\.",
    ):
        trainer(tmp_path, num_train_epochs=0.5, **settings)
    _, _, engine = trainer(tmp_path, num_train_epochs=2 / 3, **settings)
    engine.train()
    assert engine.state.global_step == 8


def test_gradient_accumulation_trains(tmp_path):
    model, collator, engine = trainer(tmp_path, gradient_accumulation_steps=2, steps=4)
    before = model.policy.norm.weight.clone()
    engine.train()
    assert engine.state.global_step == 4
    assert not torch.equal(model.policy.norm.weight, before)
    assert collator.calls <= 7


BAD = [
    (dict(sampler="beam"), r"sampler='beam' is unknown\. Choose one of 'ocss'"),
    (dict(sampling_scope="clip"), "sampling_scope='clip' is unknown"),
    (dict(reward="luck"), "Reward 'luck' is unknown. Give one of 'accuracy', 'probability', or a function"),
    (dict(reward="no_such:thing"), "the module 'no_such' cannot be imported"),
    (dict(num_iterations=0), "num_iterations=0 is too small"),
    (dict(max_steps=7, num_iterations=2), "max_steps=7 ends within the 2 iterations .* such as 8"),
    (dict(scored_types=["riddle"]), "scored_types has 'riddle', which is not a problem type"),
    (dict(reward_functions={"OCR": "no_such:thing"}), "no_such"),
    (dict(eval_ratios=[0.0]), "eval_ratios"),
    (dict(eval_ratios=[]), "eval_ratios is empty"),
    (dict(num_token_rollouts=1), "num_token_rollouts=1 is too small"),
    (
        dict(sampling_ratio=0.0),
        r"sampling_ratio=0\.0 is outside \(0, 1\]. Give a number in there, such as the default 0\.02\.",
    ),
    (dict(target_ratios=[]), "target_ratios is empty"),
    (dict(target_ratios=[0.1, 1.5]), r"target_ratios\[1\]=1\.5 is outside"),
    (dict(token_price=0.5), "token_price=0.5 has no effect with sampler='ocss'"),
    (dict(token_price=-1.0, sampler="bernoulli"), r"token_price=-1\.0 is outside"),
    (dict(retention_weight=-1.0), r"retention_weight=-1\.0 is outside \[0, inf\)"),
    (dict(retention_floor=1.5), r"retention_floor=1\.5 is outside \[0, 1\]"),
    (dict(kl_weight=-0.1), r"kl_weight=-0\.1 is outside \[0, inf\)"),
    (dict(kl_weight=math.nan), "kl_weight=nan is outside"),
    (dict(group_cap=0.5), r"group_cap=0\.5 is outside \[1, inf\)"),
    (dict(clip_low=-1.0), r"clip_low=-1\.0 is outside \(0, 1\]"),
    (dict(dual_clip=0.5), r"dual_clip=0\.5 is outside \(1, inf\)"),
    (dict(ratio_ceiling=3.0), r"ratio_ceiling=3\.0 is outside \(0, 1\]"),
    (dict(ratio_low=0.9), r"ratio_low=0\.9 is not under ratio_high=0\.875"),
    (dict(max_new_tokens=0), "max_new_tokens=0 is too small"),
    (dict(num_token_rollouts=4.5), "num_token_rollouts=4.5 is not of type int"),
    (dict(num_iterations=True), "num_iterations=True is not of type int"),
    (dict(learning_rate="fast"), "learning_rate='fast' is text. Give a number"),
    (dict(eval_ratios=0.1), r"eval_ratios=0\.1 is not of type list\[float\]"),
    (dict(reward_functions=None), r"reward_functions=None is not a value. Give names and values"),
    (dict(scored_types="OCR"), r"scored_types='OCR' is not of type list\[str\]"),
    (dict(target_ratios="0.1"), r"target_ratios='0\.1' is not of type list\[float\] \| None"),
    (dict(gradient_checkpointing=True), "_checkpointing=True is not supported here"),
    (dict(auto_find_batch_size=True), "auto_find_batch_size=True is not supported here"),
    (dict(dataloader_drop_last=True), "dataloader_drop_last=True is not supported here"),
    (dict(teacher="oracle"), "teacher='oracle' is unknown"),
    (dict(teacher_layer=1), "teacher_layer=1 needs a teacher"),
    (dict(teacher_query="first"), "teacher_query='first' is unknown"),
    (dict(teacher_query="last"), "teacher_query='last' needs a teacher"),
    (dict(teacher_steps=5), "teacher_steps=5 needs a teacher"),
    (dict(teacher="attention", teacher_steps=6), "teacher_steps=6 ends within the 5 iterations"),
    (dict(teacher="attention", teacher_steps=0), "teacher_steps=0 is not a number of steps"),
    (dict(teacher="attention", teacher_steps=2.5), "teacher_steps=2.5 is not a number of steps"),
    (dict(policy_attention="text"), "policy_attention='text' is unknown"),
    (dict(policy_type="heavy"), "policy_type='heavy' is unknown"),
    (dict(policy_type="residual", policy_attention="causal"), "does not go with policy_type='residual'"),
    (dict(advantage="alone"), r"advantage='alone' is unknown\. Choose one of 'joint', 'by_token', 'by_reward'"),
    (dict(advantage="by_token"), "advantage='by_token' has no effect with sampler='ocss'"),
    (dict(advantage="by_reward"), "advantage='by_reward' has no effect with one reward"),
    (dict(curriculum="pictures"), r"curriculum='pictures' is unknown\. Choose one of None, 'images'"),
    (dict(curriculum="images", curriculum_frames=0), "curriculum_frames=0 is too small"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ContributionTrainingArguments(output_dir=str(tmp_path), **settings)


def test_the_defaults_are_the_published_recipe(tmp_path):
    args = ContributionTrainingArguments(output_dir=str(tmp_path))
    published = {
        "num_train_epochs": 1.0,
        "num_iterations": 5,
        "num_token_rollouts": 23,
        "num_frame_rollouts": 8,
        "sampler": "ocss",
        "sampling_scope": "frame",
        "group_spread": 2.0,
        "group_cap": 2.0,
        "sampling_ratio": 0.02,
        "ratio_low": 0.125,
        "ratio_high": 0.875,
        "ratio_floor": 0.01,
        "ratio_ceiling": 0.12,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "kl_weight": 0.0,
        "reward": "accuracy",
        "learning_rate": 1e-6,
        "layer_learning_rate_factor": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 5.0,
        "lr_scheduler_type": "cosine",
    }
    assert {name: getattr(args, name) for name in published} == published
