"""Methods that drop tokens between layers refuse the language models whose layers they cannot serve, before any heavy work."""

import pytest
from helpers.models import PROMPTS, prompt_inputs, stock_model, tower

from cacovid_hf import CaCoVidForConditionalGeneration

FULL = dict(layer_types=["full_attention"] * 3)
REASONS = {
    "qwen3_5": ({}, "keeps states of linear attention"),
    "gemma4": ({}, "has layers of sliding attention"),
    "gemma4, frames that see each other": (FULL, "receives more of a token than its embedding"),
    "gemma4, per-layer inputs": (
        dict(hidden_size_per_layer_input=8, use_bidirectional_attention=None, **FULL),
        "receives more of a token than its embedding",
    ),
}


@pytest.mark.parametrize("refused", REASONS)
def test_the_language_model_is_named(refused):
    family, (settings, reason) = refused.partition(",")[0], REASONS[refused]
    stock = stock_model(family, **settings)
    model, inputs = CaCoVidForConditionalGeneration.from_backbone(stock), prompt_inputs(stock, PROMPTS["one video"])
    tower(stock).register_forward_pre_hook(lambda *args: pytest.fail("the vision tower ran"))
    for method in ("fastv", "framefusion"):
        expected = f"Compressor '{method}' drops tokens inside the language model, and that of {family} {reason}"
        for call in (model.generate, model.compress, model):
            with pytest.raises(ValueError, match=expected):
                call(**inputs, retention_ratio=0.5, compressor=method)
        # Also beside what these methods refuse of any language model.
        for call, more in (
            (model.generate, dict(prefill_chunk_size=4)),
            (model.generate, dict(use_cache=False)),
            (model.generate, dict(retention_ratio="auto")),
            (model, dict(labels=inputs["input_ids"])),
            (model.session, dict(keep_selection=True)),
        ):
            with pytest.raises(ValueError, match=expected):
                call(**inputs, **{"retention_ratio": 0.5, "compressor": method, **more})
