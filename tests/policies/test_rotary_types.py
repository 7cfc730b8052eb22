"""Stretched rotary embeddings, up to the length within which they are of one kind: the turning of a policy is the stock model's, number by number."""

import pytest
import torch
from helpers.text_models import SIZES, TEXT_MODELS, text_model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cacovid_hf.policies.rotary import cos_sin

BOUND = 32
STRETCHED = [
    name
    for name, settings in TEXT_MODELS.items()
    if settings.get("rope_parameters", {}).get("rope_type", "default") != "default"
]


@pytest.mark.parametrize("name", STRETCHED)
def test_heads_are_turned_as_in_the_stock_model(name):
    model = text_model(name)
    config, positions = model.config, torch.arange(BOUND)
    if "mrope_section" in config.rope_parameters:
        positions = torch.stack([positions, positions * 5 % BOUND, positions * 7 % BOUND])
    expected = model.rotary_emb(torch.zeros(1, BOUND, SIZES["hidden_size"]), positions[..., None, :])
    head_dim = getattr(config, "head_dim", None) or SIZES["hidden_size"] // SIZES["num_attention_heads"]
    found = cos_sin(config, head_dim, None, positions, torch.float32)
    for ours, stock in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, stock[0], atol=1e-6, rtol=1e-6)
    kind = config.rope_parameters["rope_type"]
    config.rope_parameters = {**config.rope_parameters, "rope_type": "default"}
    plain = cos_sin(config, head_dim, None, positions, torch.float32)
    # Up to its bound, `dynamic` is what it stretches.
    assert torch.allclose(found[0], plain[0], atol=1e-2) == (kind == "dynamic")


def test_every_kind_that_transformers_knows_has_a_row():
    known = {TEXT_MODELS[name]["rope_parameters"]["rope_type"] for name in STRETCHED}
    assert known >= set(ROPE_INIT_FUNCTIONS) - {"default", "proportional"}  # the second is Gemma 4's, which has rows
