"""What every family must show has a quick case of each, so that a run on the oldest or the newest transformers shows it for all of them."""

import importlib.util
import math
from pathlib import Path

import pytest
from helpers.models import FAMILIES

TESTS = Path(__file__).resolve().parent
SHOWN = {
    "the oracle by masking": "generation/test_oracle.py::test_greedy_tokens_and_logits",
    "the oracle by cutting": "generation/test_oracle_by_cutting.py::test_greedy",
    "other decodings": "generation/test_oracle.py::test_every_decoding_on_a_ragged_batch",
    "other caches, and chunks": "generation/test_oracle_by_cutting.py::test_other_caches",
    "flash attention": "generation/test_flash.py::test_greedy_tokens_logits_and_kernels",
    "ratio 1.0, bit for bit": "generation/test_oracle.py::test_keeping_everything_is_the_stock_model",
    "budgets that scores decide": "generation/test_adaptive_budgets.py::test_what_scores_decide",
    "the divergence gate": "compressors/test_rivals.py::test_the_divergence_gate",
    "bad inputs": "generation/test_bad_prompts.py::test_bad_call",
    "later turns": "generation/test_turns.py::test_conversations_by_cutting",
    "rollouts": "training/test_rollouts.py::test_every_rollout_equals_the_cut_prompt",
    "a policy's first layer": "policies/test_policy.py::test_the_layer_is_the_language_models_layer",
    "methods inside": "compressors/test_inside.py::test_cutting_equals_masking_and_merging_by_hand",
    "long videos": "generation/test_long_video.py::test_chunks_are_the_whole",
    "published settings, and exact counts": "test_published_settings.py::test_a_file_up_to_its_answer",
}


def marks_of(test):
    """The marks of a test, by its file and name, and those of its module."""
    file, _, name = test.partition("::")
    spec = importlib.util.spec_from_file_location(f"shown_{name}", TESTS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    of_module = getattr(module, "pytestmark", [])
    return [*getattr(module, name).pytestmark, *(of_module if isinstance(of_module, list) else [of_module])]


@pytest.mark.parametrize("shown", SHOWN)
def test_every_family_has_a_quick_case(shown):
    """One in `n` of its cases is quick, and it has `n` or more of each family."""
    marks = marks_of(SHOWN[shown])
    tables = {mark.args[0]: mark.args[1] for mark in marks if mark.name == "parametrize"}
    assert tuple(tables.pop("family")) == FAMILIES
    (every,) = (mark.args[0] for mark in marks if mark.name == "spread")
    assert math.prod(map(len, tables.values())) >= every, (
        f"{SHOWN[shown]} is not quick for every family: lower its spread."
    )
