"""The policies of the laboratory, and what they learn from."""

import pytest
import torch

from cacovid_hf import CaCoVidForConditionalGeneration
from studies.laboratory import policies
from studies.laboratory.contributions import DRAWS, SIZE, measure
from studies.laboratory.packing import answer_logits
from studies.laboratory.policies import Recipe, policy_scores, train
from studies.laboratory.questions import NUM_TOKENS
from studies.laboratory.scores import attended


@pytest.mark.parametrize("teacher", ["question", "last", "evidence"])
def test_recipes_train_a_policy(laboratory, teacher):
    model, _, asked = laboratory
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    before = {name: weight.clone() for name, weight in wrapped.policy.named_parameters()}
    logs = train(
        wrapped, asked, attended(model, asked), Recipe(teacher, steps=12, rollout_questions=32, tokens=(2, 5)), seed=0
    )
    assert len(logs["imitation"]) == 12
    assert logs["imitation"][-1] < logs["imitation"][0]
    assert logs["rollouts"] == 32 * 12 * 2
    assert len(logs["rollouts_log"]) == 2
    moved = {name for name, weight in wrapped.policy.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert not any(name.startswith("frame_head") for name in moved)


def test_measured_subsets_are_answered_and_hold_what_they_say(laboratory):
    model, _, asked = laboratory
    scores, questions = torch.rand(2, NUM_TOKENS), torch.tensor([3, 17])
    found = measure(model, asked, scores, questions, torch.Generator().manual_seed(0))
    assert (found.masks.sum(2) == SIZE).all()
    assert torch.equal(found.likely, scores.topk(2 * SIZE, dim=1).indices)
    kept = found.masks.nonzero()[:, 2].view(2, DRAWS, SIZE)
    for one in (0, DRAWS - 1):
        alone = asked.alone(questions)
        logits = answer_logits(model, alone, torch.arange(2), kept[:, one])[:, 0]
        expected = logits.softmax(-1).gather(1, alone.answers)[:, 0]
        torch.testing.assert_close(found.probability[:, one], expected, rtol=1e-4, atol=1e-6)


def test_a_policy_learns_measured_contributions(laboratory):
    model, _, asked = laboratory
    measured = measure(
        model, asked, torch.rand(7, NUM_TOKENS), torch.arange(0, 20, 3), torch.Generator().manual_seed(0)
    )

    def trained(recipe):
        torch.manual_seed(0)
        wrapped = CaCoVidForConditionalGeneration.from_backbone(
            model, policy_type="light", contribution_share=1.0, scope="tokens"
        )
        return train(wrapped, asked, attended(model, asked), recipe, seed=0, contributions=measured)

    logs = trained(Recipe(contribution_steps=20))
    assert len(logs["contributions"]) == 20
    assert sum(logs["contributions"][-5:]) < sum(logs["contributions"][:5])
    assert "imitation" not in logs
    assert trained(Recipe(contribution_steps=1, harm_weight=0.0))["contributions"][0] < logs["contributions"][0]


def test_what_a_policy_finds_likely_is_measured_and_learnt_in_passes(laboratory, monkeypatch):
    model, _, asked = laboratory
    monkeypatch.setattr(policies, "CONTRIBUTION_QUESTIONS", 40)
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    likely = policy_scores(wrapped, asked).flatten(0, 1)
    found = policies._measured_by_policy(wrapped, asked, torch.Generator().manual_seed(0))
    assert len(found.questions) == 40
    assert torch.equal(found.likely, likely[found.questions].topk(2 * SIZE, dim=1).indices)
    logs = train(wrapped, asked, attended(model, asked), Recipe(contribution_steps=6, by_policy=True), seed=0)
    assert len(logs["contributions"]) == 6


def test_each_batch_is_measured_once_and_learnt_in_a_row(laboratory):
    model, _, asked = laboratory
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    logs = train(wrapped, asked, attended(model, asked), Recipe(contribution_steps=10, in_a_row=5), seed=0)
    first, second = logs["contributions"][:5], logs["contributions"][5:]
    assert len(second) == 5
    assert first[-1] < first[0]
