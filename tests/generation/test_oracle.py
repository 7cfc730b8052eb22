"""Promise 2, the oracle: dropping tokens equals the uncompressed stock model with those tokens masked out as keys in every layer, at
explicit original positions. Promises 1 and 4 are checked beside it.
"""

import pytest
import torch
from helpers.models import (
    BY_NAME,
    FAMILIES,
    PROMPTS,
    RAGGED,
    TEXT_ONLY,
    for_forward,
    masked_inputs,
    original_positions,
    prompt_inputs,
    skip_unless_split,
    stock_inputs,
    stock_model,
)
from transformers import StaticCache
from transformers.generation.streamers import BaseStreamer

from cacovid_hf import CaCoVidForConditionalGeneration

DECODINGS = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True, temperature=1.5, top_k=20),
    "beams": dict(num_beams=3, do_sample=False),
    "several sequences": dict(num_return_sequences=3, do_sample=True),
    "beam sampling": dict(num_beams=3, do_sample=True, num_return_sequences=2),
    "static cache": dict(cache_implementation="static", do_sample=False),
    "static cache, beams": dict(cache_implementation="static", num_beams=2, do_sample=False),
    "no cache": dict(use_cache=False, do_sample=False),
    "logits to keep": dict(logits_to_keep=3, do_sample=False),
    "repetition penalty, no repeated 2-grams": dict(repetition_penalty=1.3, no_repeat_ngram_size=2, do_sample=False),
    "prefill in chunks": dict(prefill_chunk_size=4, do_sample=False),
    "prefill in chunks, beams": dict(prefill_chunk_size=5, num_beams=2, do_sample=False),
    "prefill in chunks, static cache": dict(prefill_chunk_size=5, cache_implementation="static", do_sample=False),
}
# What the oracle does not need, or cannot do with a prompt of ids and pixels: chunks are a matter of how, not of what.
ONLY_OURS = ("prefill_chunk_size",)


def skip_unless_taken(family, decoding):
    if "logits_to_keep" in DECODINGS[decoding] and not BY_NAME[family].keeps_logits:
        pytest.skip(f"the stock {family} makes logits of every position")


def generated(model, inputs, **settings):
    torch.manual_seed(7)
    return model.generate(**inputs, max_new_tokens=6, **settings)


def oracle(stock, inputs, kept_indices, **settings):
    settings = {name: value for name, value in settings.items() if name not in ONLY_OURS}
    return generated(stock, masked_inputs(stock, inputs, kept_indices, **settings), **settings)


@pytest.mark.spread(6)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_logits(family, prompt, attention):
    stock = stock_model(family, attention)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    compressed = model.compress(**inputs, retention_ratio=0.25)
    tokens = generated(model, inputs, retention_ratio=0.25, do_sample=False)

    assert torch.equal(tokens, oracle(stock, inputs, compressed.kept_indices, do_sample=False))
    assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    with torch.no_grad():
        ours = model(**inputs, retention_ratio=0.25).logits[:, -1]
        reference = stock(**for_forward(masked_inputs(stock, inputs, compressed.kept_indices))).logits[:, -1]
    torch.testing.assert_close(ours, reference, atol=2e-4, rtol=1e-4)
    if not compressed.is_plain:
        with pytest.raises(
            ValueError, match="more than embeddings, mask and positions, which the backbone's own generate would"
        ):
            compressed.model_inputs()
        return
    # The compressed prompt is exactly what the backbone's own generate takes.
    again = generated(stock, compressed.model_inputs(), do_sample=False)
    assert torch.equal(again[:, -6:], tokens[:, -6:])


@pytest.mark.spread(6)
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_decoding_on_a_ragged_batch(family, decoding):
    skip_unless_taken(family, decoding)
    skip_unless_split(family, DECODINGS[decoding])
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, RAGGED)
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    ours = generated(model, inputs, retention_ratio=0.25, **DECODINGS[decoding])
    assert torch.equal(ours, oracle(stock, inputs, kept, **DECODINGS[decoding]))
    settings = {name: value for name, value in DECODINGS[decoding].items() if name not in ONLY_OURS}
    assert not torch.equal(ours, generated(stock, stock_inputs(stock, inputs, **settings), **settings))


@pytest.mark.spread(3)
@pytest.mark.parametrize("prompt", ["one video", "ragged batch", "image beside video"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family, prompt):
    stock = stock_model(family, dtype=torch.bfloat16)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    compressed = model.compress(**inputs, retention_ratio=0.25)
    assert compressed.inputs_embeds.dtype == torch.bfloat16
    assert compressed.videos[0].token_scores.dtype == torch.float32
    with torch.no_grad():
        ours = model(**inputs, retention_ratio=0.25).logits[:, -1].float()
        reference = stock(**for_forward(masked_inputs(stock, inputs, compressed.kept_indices))).logits[:, -1].float()
        everything = stock(**for_forward(stock_inputs(stock, inputs))).logits[:, -1].float()
    # Rounding of bfloat16 (8 bits) over three layers, far below what the dropped tokens change.
    assert (ours - reference).abs().max() < 0.04 * reference.abs().max()
    assert (ours - everything).abs().max() > 0.2 * reference.abs().max()
    ours = generated(model, inputs, retention_ratio=0.25, do_sample=False)[:, -6:]
    assert torch.equal(ours[:, 0], oracle(stock, inputs, compressed.kept_indices, do_sample=False)[:, -6])


@pytest.mark.parametrize("family", FAMILIES)
def test_streamer_gets_the_callers_prompt_and_the_oracles_tokens(family):
    class Collect(BaseStreamer):
        def __init__(self):
            self.received = []

        def put(self, value):
            self.received.append(value)

        def end(self):
            self.received.append(None)

    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    streamer = Collect()
    tokens = generated(model, inputs, retention_ratio=0.25, do_sample=False, streamer=streamer)
    assert torch.equal(streamer.received[0], inputs["input_ids"])
    assert streamer.received[-1] is None
    assert torch.cat(streamer.received[1:-1]).tolist() == tokens[0, -6:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_static_cache_is_as_small_as_the_compressed_prompt(family):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices.shape[1]
    settings = dict(cache_implementation="static", return_dict_in_generate=True, do_sample=False)
    outputs = generated(model, inputs, retention_ratio=0.25, **settings)
    assert isinstance(outputs.past_key_values, StaticCache)
    # The last layer attends in every family.
    assert outputs.past_key_values.layers[-1].max_cache_len == kept + 6


@pytest.mark.spread(10)
@pytest.mark.parametrize(
    "decoding", [name for name, settings in DECODINGS.items() if "prefill_chunk_size" not in settings]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_stock_model(family, decoding):
    """Promise 1, bit for bit: ratio 1.0, no ratio, or no video; and the stock model afterwards is what it was before."""
    skip_unless_taken(family, decoding)
    stock = stock_model(family)
    inputs = prompt_inputs(stock, RAGGED)
    if "inputs_embeds" in stock_inputs(stock, inputs, **DECODINGS[decoding]):
        pytest.skip(f"the stock {family} takes no videos with beams or several sequences")
    texts = prompt_inputs(stock, TEXT_ONLY)
    settings = dict(**DECODINGS[decoding], return_dict_in_generate=True, output_logits=True)
    before = generated(stock, stock_inputs(stock, inputs), **settings)
    before_text = generated(stock, stock_inputs(stock, texts), **settings)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    generated(model, inputs, retention_ratio=0.1, **DECODINGS[decoding])
    for outputs, reference in (
        (generated(model, inputs, retention_ratio=1.0, **settings), before),
        (generated(model, inputs, retention_ratio=[1.0, 1, 1.0], **settings), before),
        (generated(model, inputs, **settings), before),
        (generated(stock, stock_inputs(stock, inputs), **settings), before),
        (generated(model, texts, retention_ratio=0.25, **settings), before_text),
    ):
        assert torch.equal(outputs.sequences, reference.sequences)
        assert all(torch.equal(a, b) for a, b in zip(outputs.logits, reference.logits, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_keeping_everything_is_the_stock_model(family):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    for rows in (RAGGED, TEXT_ONLY):
        inputs = prompt_inputs(stock, rows)
        labels = inputs["input_ids"].clone()
        with torch.no_grad():
            ours = model(**inputs, labels=labels, retention_ratio=1.0)
            reference = stock(**stock_inputs(stock, inputs), labels=labels)
        assert torch.equal(ours.logits, reference.logits)
        assert torch.equal(ours.loss, reference.loss)
        assert ours.kept_indices.tolist() == [list(range(labels.shape[1]))] * len(rows)


@pytest.mark.spread(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_explicit_position_ids_are_kept(family):
    """Promise 4: the caller's own positions are those of the kept tokens."""
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    positions = original_positions(stock, inputs)
    usual = generated(model, inputs, retention_ratio=0.25, do_sample=False)
    assert torch.equal(
        generated(model, {**inputs, "position_ids": positions}, retention_ratio=0.25, do_sample=False), usual
    )
    stretched = generated(model, {**inputs, "position_ids": positions * 3}, retention_ratio=0.25, do_sample=False)
    kept = model.compress(**inputs, position_ids=positions * 3, retention_ratio=0.25)
    assert torch.equal(kept.position_ids[..., -1], positions[..., -1] * 3) or kept.position_ids.ndim == 3
    reference = {**masked_inputs(stock, inputs, kept.kept_indices), "position_ids": positions * 3}
    assert torch.equal(stretched, generated(stock, reference, do_sample=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_text_after_the_video_goes_on_from_the_uncompressed_length(family):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    compressed = model.compress(**inputs, retention_ratio=0.25)
    whole = original_positions(stock, inputs)
    rows = torch.arange(3)[:, None]
    kept = compressed.kept_indices
    expected = whole[..., rows, kept.clamp(min=0)].masked_fill(kept < 0, 0)
    if BY_NAME[family].mrope:
        assert torch.equal(compressed.position_ids[1:], expected[1:])
        # The text row has no gaps: jumps there are read as packed sequences.
        assert torch.equal(compressed.position_ids[0], (compressed.attention_mask.cumsum(1) - 1).clamp(min=0))
    else:
        assert torch.equal(compressed.position_ids, expected)
    assert torch.equal(compressed.attention_mask, (kept >= 0).long())
