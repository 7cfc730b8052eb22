"""Between vision and the first token the host never waits for the device on our account."""

import json
from pathlib import Path

import pytest
import torch
from helpers.families.base import TEXT
from helpers.fresh import run_fresh
from helpers.models import BY_NAME, FAMILIES, FIRST

TESTS = Path(__file__).parents[1]
CASES = [
    *((family, policy, "frame", "one video") for family in FIRST for policy in ("question", "causal", "light")),
    *((family, "light", "tokens", "ragged batch") for family in FIRST),
    ("llava_onevision", "question", "frame", "two videos"),
]


def records(cases, folder):
    """What `no_waiting.py` found in each case."""
    program = f"""
import runpy, sys
sys.path[:0] = {[str(TESTS), str(TESTS / "helpers")]!r}
sys.argv[1:] = {[",".join(case) for case in cases]!r}
runpy.run_path({str(TESTS / "helpers" / "no_waiting.py")!r}, run_name="__main__")
"""
    run = run_fresh(program, folder, with_transformers=True)
    return dict(zip(cases, json.loads(run.stdout.splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return records(CASES, tmp_path_factory.mktemp("no_waiting"))


@pytest.mark.parametrize("case", CASES, ids=",".join)
def test_the_host_does_not_wait_behind_vision(found, case):
    """On a pretended device that counts the waits. Ours alone: a few before vision, where the layout reads ids, mask and grids, and the check
    that is settled when stock generation has waited anyway.
    """
    check(found[case])


@pytest.mark.spread(6)
@pytest.mark.parametrize("family", FAMILIES[len(FIRST) :])
def test_further_families_do_not_wait(family, tmp_path):
    if family.endswith("_moe"):
        pytest.skip("the pretended device does not sort tokens by expert")
    BY_NAME[family].config(TEXT)  # a package that is missing skips the test here, not in the child
    case = (family, "light", "tokens", "ragged batch")
    check(records([case], tmp_path)[case])


def check(record):
    assert record["same_tokens"]
    assert len(record["stock"]["behind_vision"]) > 0  # it does count

    def ours(waits):
        return [(what, place) for what, place in waits if "cacovid_hf" in place]

    behind = ours(record["ours"]["behind_vision"])
    assert [Path(place.split(":")[0]).name for _, place in behind] == ["check.py"], behind
    assert len(ours(record["ours"]["all"])) <= len(behind) + 6
    assert len(record["ours"]["all"]) <= len(record["stock"]["all"]) + 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("policy_type", ["full", "light"])
@pytest.mark.parametrize("family", FIRST)
def test_scores_and_selection_on_cuda(family, policy_type):
    """The same of a real device: policy, selection and gather raise where they would synchronise."""
    from helpers.models import PROMPTS, prompt_inputs, stock_model

    from cacovid_hf import CaCoVidForConditionalGeneration

    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(family).cuda(), policy_type=policy_type)
    inputs = {name: value.cuda() for name, value in prompt_inputs(model.backbone, PROMPTS["ragged batch"]).items()}
    prompt = model.embed(**inputs)
    method = model.resolve_compressor(None)
    model._select(prompt, (0.25,), method)  # pinned memory and kernels are there now
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, check = model._select(prompt, (0.25,), method)
        check.launch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check.settle()
