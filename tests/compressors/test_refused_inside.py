"""Methods that drop tokens between layers refuse the language models whose layers they cannot serve, before any heavy work."""

import pytest
from helpers.models import PROMPTS, prompt_inputs, tower, wrapped

REASONS = {
    "qwen3_vl": r"that of qwen3_vl adds features of every token behind its first layers \(DeepStack\)",
    "qwen3_5": r"that of qwen3_5 keeps states of linear attention",
}


@pytest.mark.parametrize("method", ["fastv", "framefusion"])
def test_the_language_model_is_named(method):
    for family, reason in REASONS.items():
        stock, model = wrapped(family)
        inputs = prompt_inputs(stock, PROMPTS["one video"])
        tower(stock).register_forward_pre_hook(lambda *args: pytest.fail("the vision tower ran"))
        for call in (model.generate, model.compress, model):
            with pytest.raises(
                ValueError, match=f"Compressor '{method}' drops tokens inside the language model, and {reason}"
            ):
                call(**inputs, retention_ratio=0.5, compressor=method)
