"""Promise 2 by another way: dropping tokens equals a stock language model that never received them (see `helpers.cut_oracle`).

Where every layer attends, this is what the oracle by masking says too. It shares nothing with our seam but the kept places.
"""

import pytest
import torch
from helpers import flash_stand_in
from helpers.cut_oracle import CutPrompts
from helpers.models import (
    FAMILIES,
    PROMPTS,
    RAGGED,
    prompt_inputs,
    skip_unless_split,
    skip_without_flash,
    stock_model,
)

from cacovid_hf import CaCoVidForConditionalGeneration

STEPS = 6
CLOSE = dict(atol=5e-4, rtol=1e-4)
DECODINGS = {
    "static cache": dict(cache_implementation="static"),
    "no cache": dict(use_cache=False),
    "prefill in chunks": dict(prefill_chunk_size=4),
    "prefill in chunks, static cache": dict(prefill_chunk_size=5, cache_implementation="static"),
}


def compressed(family, rows, attention="sdpa"):
    stock = stock_model(family, attention)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, rows)
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    return model, inputs, CutPrompts(stock, inputs, kept)


def generated(model, inputs, **settings):
    return model.generate(
        **inputs,
        retention_ratio=0.25,
        max_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )


@pytest.mark.spread(6)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy(family, prompt, attention):
    model, inputs, cut = compressed(family, PROMPTS[prompt], attention)
    tokens, logits = cut.greedy(STEPS)
    ours = generated(model, inputs, do_sample=False)
    torch.testing.assert_close(torch.stack(ours.logits, dim=1), logits, **CLOSE)
    assert torch.equal(ours.sequences[:, -STEPS:], tokens)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, retention_ratio=0.25).logits[:, -1], logits[:, 0], **CLOSE)


@pytest.mark.spread(4)
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_caches(family, decoding):
    skip_unless_split(family, DECODINGS[decoding])
    model, inputs, cut = compressed(family, RAGGED)
    tokens, logits = cut.greedy(STEPS)
    ours = generated(model, inputs, do_sample=False, **DECODINGS[decoding])
    torch.testing.assert_close(torch.stack(ours.logits, dim=1), logits, **CLOSE)
    assert torch.equal(ours.sequences[:, -STEPS:], tokens)


@pytest.mark.spread(3)
@pytest.mark.parametrize("chunk", [None, 4], ids=["whole", "in chunks"])
@pytest.mark.parametrize("rows", [RAGGED, PROMPTS["one video"]], ids=["ragged", "one video"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention(family, rows, chunk, monkeypatch):
    """By stand-in kernels, against stock on sdpa."""
    skip_without_flash(family)
    if len(rows) == 1:
        flash_stand_in.skip_unless_stock_runs(family)
    kernels = flash_stand_in.install(monkeypatch)
    model, inputs, cut = compressed(family, rows)
    tokens, logits = cut.greedy(STEPS)
    assert kernels.calls == []
    flash_stand_in.use_flash_attention(model.backbone)
    ours = generated(model, inputs, do_sample=False, prefill_chunk_size=chunk)
    assert kernels.of_language_model()
    torch.testing.assert_close(torch.stack(ours.logits, dim=1), logits, **CLOSE)
    assert torch.equal(ours.sequences[:, -STEPS:], tokens)


@pytest.mark.spread(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_sequences(family):
    """The logits of every step of every sequence, given the tokens that were drawn before it."""
    model, inputs, cut = compressed(family, RAGGED)
    ours = generated(model, inputs, do_sample=True, num_return_sequences=2)
    logits = torch.stack(ours.logits, dim=1)
    for number, made in enumerate(ours.sequences[:, -STEPS:]):
        expected = cut.logits(number // 2, made[:-1])
        torch.testing.assert_close(logits[number], expected, **CLOSE)


@pytest.mark.spread(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_beams(family):
    """The score of every sequence is its mean log probability, and none is below the greedy one."""
    model, inputs, cut = compressed(family, RAGGED)
    ours = generated(model, inputs, do_sample=False, num_beams=3, num_return_sequences=3, output_scores=True)
    suppressed = model.generation_config.suppress_tokens
    for number, (made, score) in enumerate(zip(ours.sequences[:, -STEPS:], ours.sequences_scores, strict=True)):
        logits = cut.logits(number // 3, made[:-1])
        logits = logits.log_softmax(-1)
        assert not torch.isin(made, torch.tensor(suppressed)).any()
        torch.testing.assert_close(logits.gather(1, made[:, None]).mean(), score, **CLOSE)
