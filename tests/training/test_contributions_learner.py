"""Training by values of single tokens: what is asked, when, and what the policy learns."""

import pytest
import torch
from helpers.small_training import BY_CONTRIBUTIONS, Gradients, TwoSizes, counted, trainer

from cacovid_hf.training.arguments import OBJECTIVES
from cacovid_hf.training.rewards import Completion
from cacovid_hf.training.trainer import LEARNERS


def test_every_objective_has_a_learner():
    assert tuple(LEARNERS) == OBJECTIVES


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_sample_is_answered_once_and_learnt_in_every_pass(tmp_path, num_iterations):
    _, _, engine = trainer(tmp_path, **BY_CONTRIBUTIONS, num_iterations=num_iterations, steps=12, samples=4)
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
        tmp_path, **BY_CONTRIBUTIONS, num_iterations=1, samples=8, steps=16, teacher="attention", teacher_steps=2
    )
    asked = counted(engine)
    engine.train()
    assert sum(asked) == 8 * 6
    engine.train()
    assert sum(asked) == 2 * 8 * 6, "another run begins from nothing"


def test_harm_weighs_what_is_learnt_and_not_what_is_measured(tmp_path):
    losses, values = [], []
    for harm_weight in (1.0, 0.0):
        _, _, engine = trainer(
            tmp_path, **BY_CONTRIBUTIONS, num_iterations=1, samples=4, steps=1, harm_weight=harm_weight
        )
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


def test_samples_of_a_stream_are_answered_in_every_pass(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(2))

    _, _, engine = trainer(tmp_path, **BY_CONTRIBUTIONS, num_iterations=1, steps=3, samples=Stream())
    asked = counted(engine)
    engine.train()
    assert asked == [12, 12, 12]


def test_the_policy_learns_which_token_the_answer_hangs_on(tmp_path):
    """Answers that are likely exactly if a token was kept put that token first, though the policy began with three others before it."""
    model, _, engine = trainer(
        tmp_path, **BY_CONTRIBUTIONS, num_iterations=1, steps=48, samples=1, learning_rate=1e-2, num_token_rollouts=24
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


def test_batches_of_two_sizes_of_video_are_learnt_from_as_one_by_one(tmp_path):
    """Two passes; one sample cannot be read."""
    runs = []
    for size, accumulation in ((4, 1), (1, 4)):
        watch = Gradients()
        _, collator, engine = trainer(
            tmp_path,
            **BY_CONTRIBUTIONS,
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
