"""Promise 2 where layers have windows shorter than the prompt: a window covers places of the uncompressed prompt, also where most of them were dropped."""

import pytest
import torch
from helpers.cut_oracle import CutPrompts
from helpers.models import PROMPTS, RAGGED, masked_inputs, prompt_inputs, stock_model
from transformers import DynamicCache, StaticCache

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.backbones.windows import row_numbers
from cacovid_hf.compressors import Attention
from cacovid_hf.prompt import gather
from cacovid_hf.training.rollouts import generate_answers, score_answers

OFTEN = ["sliding_attention", "full_attention"] * 2
SMALL = dict(hidden_size_per_layer_input=8, use_bidirectional_attention=None)
SLIDING = dict(use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=[*OFTEN[:2], OFTEN[0]])
# Family, and what its language model has beside a tiny one's settings.
MODELS = {
    "gemma4": ("gemma4", {}),
    "gemma4, per-layer inputs": ("gemma4", SMALL),
    "gemma4, shared keys": ("gemma4", dict(**SMALL, num_hidden_layers=4, layer_types=OFTEN, num_kv_shared_layers=2)),
    "gemma4, experts": (
        "gemma4",
        dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
    ),
    "gemma4, keys for values": ("gemma4", dict(attention_k_eq_v=True, num_global_key_value_heads=1)),
    "llava_onevision": ("llava_onevision", SLIDING),
    "qwen2_5_vl": ("qwen2_5_vl", SLIDING),
}
DECODINGS = {
    "greedy": {},
    "beams": dict(num_beams=3),
    "sampling": dict(do_sample=True),
    "several sequences": dict(do_sample=True, num_return_sequences=2),
    "static cache": dict(cache_implementation="static"),
    "static cache, beams": dict(cache_implementation="static", num_beams=2),
    "chunks": dict(prefill_chunk_size=5),
}
QUICK = ("gemma4, per-layer inputs", "qwen2_5_vl")


def cases(names, quick=QUICK):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def models(name, attention="sdpa"):
    family, text = MODELS[name]
    stock = stock_model(family, attention, **text)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock, policy_type="light")


def generated(model, inputs, **settings):
    torch.manual_seed(7)
    return model.generate(**inputs, max_new_tokens=6, **{"do_sample": False, **settings})


@pytest.mark.parametrize("attention", ["eager", pytest.param("sdpa", marks=pytest.mark.slow)])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", cases(MODELS))
def test_greedy(name, prompt, attention):
    stock, model = models(name, attention)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    oracle = masked_inputs(stock, inputs, kept)
    assert torch.equal(generated(model, inputs, retention_ratio=0.25), generated(stock, oracle))
    with torch.no_grad():
        ours, reference = model(**inputs, retention_ratio=0.25).logits[:, -1], stock(**oracle).logits[:, -1]
    torch.testing.assert_close(ours, reference, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", cases(MODELS))
def test_decodings(name, decoding):
    stock, model = models(name)
    settings = DECODINGS[decoding]
    inputs = prompt_inputs(stock, RAGGED)
    if decoding == "chunks" and model.family.joint_frames(stock.config):
        with pytest.raises(
            ValueError, match=r"prefill_chunk_size=5 does not work .* must see each other in one forward"
        ):
            generated(model, inputs, retention_ratio=0.25, **settings)
        return
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    of_stock = {key: value for key, value in settings.items() if key != "prefill_chunk_size"}
    oracle = generated(stock, masked_inputs(stock, inputs, kept), **of_stock)
    assert torch.equal(generated(model, inputs, retention_ratio=0.25, **settings), oracle)


@pytest.mark.parametrize("name", cases(MODELS))
def test_windows_are_what_makes_the_difference(name, monkeypatch):
    """Without our masks, a window reaches further back."""
    stock, model = models(name)
    inputs = prompt_inputs(stock, RAGGED)
    with torch.no_grad():
        ours = model(**inputs, retention_ratio=0.1).logits[:, -1]
        monkeypatch.setattr("cacovid_hf.backbones.family.has_windows", lambda config: False)
        without = model(**inputs, retention_ratio=0.1).logits[:, -1]
    assert (ours - without).abs().max() > 0.05


@pytest.mark.parametrize("name", cases(name for name in MODELS if name.startswith("gemma4")))
def test_the_oracle_by_cutting(name):
    stock, model = models(name)
    inputs = prompt_inputs(stock, RAGGED)
    cut = CutPrompts(stock, inputs, model.compress(**inputs, retention_ratio=0.25).kept_indices)
    tokens, logits = cut.greedy(6)
    how = dict(retention_ratio=0.25, return_dict_in_generate=True, output_logits=True)
    ours = generated(model, inputs, **how)
    assert torch.equal(ours.sequences[:, -6:], tokens)
    torch.testing.assert_close(torch.stack(ours.logits, dim=1), logits, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("name", cases(MODELS))
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_later_turns_and_loops_of_forward(name, cache):
    """A turn of text behind a compressed one, by `generate` and token by token."""
    stock, model = models(name)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    text = stock.config.get_text_config()
    given = StaticCache(config=text, max_cache_len=99) if cache == "static" else DynamicCache(config=text)
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    first = generated(model, inputs, retention_ratio=0.25, past_key_values=given, return_dict_in_generate=True)
    length = first.sequences.shape[1]
    ids = torch.cat([first.sequences, torch.tensor([[20, 30, 40]])], dim=1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, 9))
    everything = torch.cat([kept, torch.arange(length - 6, length + 3)[None]], dim=1)
    reference = generated(stock, masked_inputs(stock, whole, everything))
    ours = generated(model, whole, retention_ratio=0.25, past_key_values=given, return_dict_in_generate=True)
    assert torch.equal(ours.sequences, reference)
    with torch.no_grad():
        step = model(**inputs, retention_ratio=0.25, use_cache=True)
        for token in first.sequences[0, length - 6 :]:
            step = model(input_ids=token.view(1, 1), past_key_values=step.past_key_values, use_cache=True)
        step = model(input_ids=torch.tensor([[20, 30, 40]]), past_key_values=step.past_key_values, use_cache=True)
        expected = stock(**masked_inputs(stock, whole, everything)).logits[:, -1]
    torch.testing.assert_close(step.logits[:, -1], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", cases(MODELS))
def test_rollouts(name):
    """Scored and generated answers are those of the stock model with the dropped tokens masked."""
    stock, model = models(name)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    prompt = model.embed(**inputs)
    kept = model.compress_prompt(prompt, retention_ratio=0.25).kept_indices
    some = gather(prompt, kept)
    made = generated(stock, masked_inputs(stock, inputs, kept))[:, -6:]
    assert torch.equal(generate_answers(stock, some, max_new_tokens=6), made)
    answer = torch.tensor([15, 25, 35])
    ids = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, 3))
    everything = torch.cat([kept, torch.arange(ids.shape[1] - 3, ids.shape[1])[None]], dim=1)
    with torch.no_grad():
        logits = stock(**masked_inputs(stock, whole, everything)).logits[0, -4:-1].log_softmax(-1)
    expected = logits.gather(1, answer[:, None]).sum().exp()
    torch.testing.assert_close(score_answers(stock, some, [answer]).probability[0], expected, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("name", cases(MODELS))
def test_attention_of_the_uncompressed_prompt(name):
    """The compressor that runs the first layers sees the stock model's own states."""
    stock, model = models(name)
    inputs = prompt_inputs(stock, PROMPTS["image beside video"])
    seen = []
    handle = stock.get_decoder().layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        stock(**inputs)
    model.compress(**inputs, retention_ratio=0.25, compressor=Attention(layer=1))
    handle.remove()
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)


def test_kernels_without_masks_are_refused():
    stock, model = models("qwen2_5_vl")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    stock.config._attn_implementation = "flash_attention_2"
    message = r"sliding windows of 8 positions are shorter than the \d+ .* which flash_attention_2 cannot count.*attn_implementation='sdpa'"
    for call in (model.generate, model.compress, model):
        with pytest.raises(ValueError, match=message):
            call(**inputs, retention_ratio=0.25)


def test_a_compressed_prompt_is_more_than_its_embeddings():
    stock, model = models("qwen2_5_vl")
    with pytest.raises(ValueError, match="receives more than embeddings, mask and positions"):
        model.compress(**prompt_inputs(stock, PROMPTS["one video"]), retention_ratio=0.25).model_inputs()


def test_a_cache_is_not_cut_back():
    stock, model = models("qwen2_5_vl")
    with pytest.raises(ValueError, match="windows of qwen2_5_vl's sliding attention do not hold it"):
        model.session(**prompt_inputs(stock, PROMPTS["one video"]), keep_selection=True)


def test_row_numbers():
    joint = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]]).bool()
    expected = [[0, 0, -1, 1, -1, -1, 2], [-1] * 7, [-1, 0, 0, 0, 0, 0, 0]]
    assert row_numbers(joint).tolist() == expected
