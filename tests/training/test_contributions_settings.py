"""Settings of training by values of single tokens, and of the teacher before it."""

import re
from math import inf

import pytest
from helpers.small_training import BY_CONTRIBUTIONS, trainer

from cacovid_hf.training.arguments import ContributionTrainingArguments
from cacovid_hf.training.presets import CONTRIBUTIONS


def test_contributions_follow_a_teacher(tmp_path):
    _, _, engine = trainer(
        tmp_path,
        **BY_CONTRIBUTIONS,
        teacher="attention",
        teacher_steps=4,
        num_iterations=2,
        steps=8,
        samples=2,
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
            "num_frame_rollouts=8 has no effect with objective='contributions'. Leave it out (num_frame_rollouts=0), or",
        ),
        ({"retention_weight": 0.5}, "retention_weight=0.5 has no effect with objective='contributions'"),
        ({"teacher": "attention"}, "objective='contributions' is never reached"),
        ({"teacher": "attention", "teacher_steps": 40, "max_steps": 40}, "objective='contributions' is never reached"),
        ({"token_price": 1.0, "sampler": "bernoulli"}, "sampler='bernoulli', token_price=1.0 have no effect"),
        ({"sampling_ratio": 0.5}, "sampling_ratio=0.5 leaves no unlikely tokens"),
        ({"num_token_rollouts": 2}, "num_token_rollouts=2 tells nothing"),
        ({"kl_weight": 0.05}, "kl_weight=0.05 has no effect with objective='contributions'. Leave it out, or choose"),
        (
            {"sampler": "random", "replay": False},
            "sampler='random', replay=False have no effect with objective='contributions'. Leave them out, or",
        ),
        ({"dynamic_ratio": False}, "dynamic_ratio=False has no effect"),
        ({"harm_weight": 1.5}, "harm_weight=1.5 is outside [0, 1]"),
        ({"objective": "cpo", "harm_weight": 0.25}, "harm_weight=0.25 has no effect with objective='cpo'"),
        (
            {"objective": "cpo", "harm_weight": 0.25, "least_value": 0.1},
            "harm_weight=0.25 have no effect with objective='cpo'. Leave them out, or choose",
        ),
        ({"objective": "cpo", "least_value": 0.1}, "least_value=0.1 has no effect with objective='cpo'. Leave it out"),
        ({"teacher": "attention", "teacher_steps": float("nan")}, "teacher_steps=nan is not a number of steps"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ContributionTrainingArguments(str(tmp_path), **(BY_CONTRIBUTIONS | settings))


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
    _, _, engine = trainer(tmp_path, **BY_CONTRIBUTIONS, **settings, steps=5, samples=2)
    engine.train()
    entries = [entry for entry in engine.state.log_history if "loss" in entry]
    assert ["teacher_loss" in entry for entry in entries] == [True] * 2 + [False] * 3


def test_a_teacher_that_is_followed_to_the_end_of_the_passes_is_refused(tmp_path):
    settings = {"teacher": "attention", "teacher_steps": 4, "num_iterations": 1, "num_train_epochs": 2}
    with pytest.raises(ValueError, match="objective='contributions' is never reached"):
        trainer(tmp_path, **BY_CONTRIBUTIONS, **settings, steps=-1, samples=4)
    trainer(tmp_path, **BY_CONTRIBUTIONS, **(settings | {"num_train_epochs": 3}), steps=-1, samples=4)
