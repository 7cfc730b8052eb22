"""Promise 2 under flash attention: transformers' own integration, with kernels in plain torch (`flash_stand_in`), against the oracle on sdpa.

Which kernel is used, seen on every supported version: a batch with padding goes through the variable-length kernel; so does the prefill of a
single LLaVA-OneVision row, whose gapped positions are read as packed sequences (one sequence, the whole row); Qwen2.5-VL's row of text
positions has no gaps, and decoding has one position, so those go through the plain kernel.
"""

import pytest
import torch
from helpers import flash_stand_in
from helpers.models import (
    BY_NAME,
    FAMILIES,
    PROMPTS,
    attending_layer,
    for_forward,
    masked_inputs,
    prompt_inputs,
    skip_without_flash,
    stock_model,
)
from torch.nn import functional as F

from cacovid_hf import CaCoVidForConditionalGeneration

NEW_TOKENS = 6
DECODINGS = {
    "beams": dict(num_beams=3),
    "no cache": dict(use_cache=False),
    "static cache": dict(cache_implementation="static"),
    "prefill in chunks": dict(prefill_chunk_size=4),
    "prefill in chunks, beams": dict(prefill_chunk_size=5, num_beams=2),
    "prefill in chunks, static cache": dict(prefill_chunk_size=5, cache_implementation="static"),
}


@pytest.fixture
def kernels(monkeypatch):
    return flash_stand_in.install(monkeypatch)


def models_of(family):
    """The stock model on sdpa, ours around it, and ours with the same weights and policy on flash attention."""
    skip_without_flash(family)
    stock, flash = stock_model(family), stock_model(family)
    flash_stand_in.use_flash_attention(flash)
    on_sdpa = CaCoVidForConditionalGeneration.from_backbone(stock)
    on_flash = CaCoVidForConditionalGeneration.from_backbone(flash, policy=on_sdpa.policy)
    assert flash.config.get_text_config()._attn_implementation == "flash_attention_2"
    return stock, on_sdpa, on_flash


def generated(model, inputs, **settings):
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **settings)


@pytest.mark.spread(6)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_logits_and_kernels(family, prompt, kernels):
    if len(PROMPTS[prompt]) == 1:
        flash_stand_in.skip_unless_stock_runs(family)
    stock, on_sdpa, on_flash = models_of(family)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    compressed = on_sdpa.compress(**inputs, retention_ratio=0.25)
    assert kernels.calls == []
    assert torch.equal(on_flash.compress(**inputs, retention_ratio=0.25).kept_indices, compressed.kept_indices)
    # Layers of the vision tower, attending in both directions.
    assert (len(kernels.calls) >= 2) == BY_NAME[family].tower_kernels
    assert kernels.of_language_model() == []

    kernels.calls.clear()
    tokens = generated(on_flash, inputs, retention_ratio=0.25)
    calls = kernels.of_language_model()
    assert torch.equal(tokens, generated(on_sdpa, inputs, retention_ratio=0.25))
    assert torch.equal(tokens, generated(stock, masked_inputs(stock, inputs, compressed.kept_indices)))

    # Every layer at every step: the compressed prompt once, then one query a row over one key more each time.
    lengths = compressed.attention_mask.sum(dim=1).tolist()
    layers = stock.config.get_text_config().num_hidden_layers
    ragged = len(set(lengths)) > 1
    expected = [
        flash_stand_in.Call(
            "varlen" if ragged or (step == 0 and not BY_NAME[family].mrope) else "func",
            True,
            tuple(lengths) if step == 0 else (1,) * len(lengths),
            tuple(length + step for length in lengths),
        )
        for step in range(NEW_TOKENS)
        for _ in range(layers)
    ]
    assert calls == expected

    with torch.no_grad():
        ours = on_flash(**inputs, retention_ratio=0.25).logits
        same = on_sdpa(**inputs, retention_ratio=0.25).logits
        reference = stock(**for_forward(masked_inputs(stock, inputs, compressed.kept_indices))).logits
    kept = compressed.attention_mask.bool()
    torch.testing.assert_close(ours[kept], same[kept], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(ours[:, -1], reference[:, -1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", ["one video", "ragged batch"])
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_decodings(family, decoding, prompt, kernels):
    if len(PROMPTS[prompt]) == 1:
        flash_stand_in.skip_unless_stock_runs(family)
    stock, on_sdpa, on_flash = models_of(family)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    kept = on_sdpa.compress(**inputs, retention_ratio=0.25).kept_indices
    settings = DECODINGS[decoding]
    tokens = generated(on_flash, inputs, retention_ratio=0.25, **settings)
    of_stock = {name: value for name, value in settings.items() if name != "prefill_chunk_size"}
    assert torch.equal(tokens, generated(stock, masked_inputs(stock, inputs, kept, **of_stock), **of_stock))
    assert kernels.of_language_model()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family, kernels):
    """A loss through the kernels, from a batch padded on the right."""
    stock, on_sdpa, on_flash = models_of(family)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"], padding_side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    losses = [model(**inputs, labels=labels, retention_ratio=0.25).loss for model in (on_flash, on_sdpa)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    grads = []
    for model, loss in zip((on_flash, on_sdpa), losses, strict=True):
        loss.backward()
        grads.append(attending_layer(model.get_decoder()).self_attn.q_proj.weight.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 7), (3, 8)])
@pytest.mark.parametrize("causal", [True, False])
def test_stand_in_kernels_are_attention(queries, keys, causal):
    kernels = flash_stand_in.StandInKernels()
    q, k, v = torch.randn(2, queries, 4, 8), torch.randn(2, keys, 2, 8), torch.randn(2, keys, 2, 8)
    visible = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        visible = visible.tril(keys - queries)
    heads_first = [x.transpose(1, 2) for x in (q, k.repeat_interleave(2, dim=2), v.repeat_interleave(2, dim=2))]
    expected = F.scaled_dot_product_attention(*heads_first, attn_mask=visible, scale=0.3).transpose(1, 2)
    plain = kernels.flash_attn_func(q, k, v, softmax_scale=0.3, causal=causal)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)

    def laid_end_to_end(x, shorter):
        return torch.cat([x[0], x[1][-shorter:]])

    # The second sequence without its first key and, where it has several, its first query.
    n, m = max(queries - 1, 1), keys - 1
    varlen = kernels.flash_attn_varlen_func(
        laid_end_to_end(q, n),
        laid_end_to_end(k, m),
        laid_end_to_end(v, m),
        cu_seqlens_q=torch.tensor([0, queries, queries + n], dtype=torch.int32),
        cu_seqlens_k=torch.tensor([0, keys, keys + m], dtype=torch.int32),
        max_seqlen_q=queries,
        max_seqlen_k=keys,
        softmax_scale=0.3,
        causal=causal,
    )
    torch.testing.assert_close(varlen[:queries], expected[0], atol=1e-5, rtol=1e-5)
    alone = [x[1:, :, -size:] for x, size in zip(heads_first, (n, m, m), strict=True)]
    tail = F.scaled_dot_product_attention(*alone, attn_mask=visible[-n:, -m:], scale=0.3)
    torch.testing.assert_close(varlen[queries:], tail[0].transpose(0, 1), atol=1e-5, rtol=1e-5)
    assert [call.kernel for call in kernels.calls] == ["func", "varlen"]


def test_stand_in_kernels_refuse_what_they_lack():
    kernels = flash_stand_in.StandInKernels()
    q = torch.randn(1, 3, 2, 4)
    with pytest.raises(ValueError, match="neither dropout nor windows"):
        kernels.flash_attn_func(q, q, q, dropout_p=0.1)
    with pytest.raises(ValueError, match="neither dropout nor windows"):
        kernels.flash_attn_func(q, q, q, window_size=(4, 0))
