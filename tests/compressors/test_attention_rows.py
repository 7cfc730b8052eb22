"""Attention weights that are computed beside the stock layer, against those that its plain kernel returns."""

import pytest
import torch
from helpers.text_models import SIZES, TEXT_MODELS, text_model

from cacovid_hf.compressors.tools.inside import attention_rows
from cacovid_hf.policies.stock_parts import check_readable, mlp_ends, stock_keys, stock_queries
from cacovid_hf.utils.hooks import Hook, attached

LENGTH = 11


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_rows_are_those_of_the_stock_kernel(name):
    """In every layer that attends; rows of multimodal positions differ, where the model has them."""
    model = text_model(name)
    attending = [layer.self_attn for layer in model.layers if "self_attn" in dict(layer.named_children())]
    places = torch.arange(LENGTH)
    positions = places[None]
    if "mrope_section" in model.config.rope_parameters:
        positions = torch.stack([places, places, places * 2 % 7, places * 3 % 5])[:, None]
    queries, rows, weights = torch.tensor([4, LENGTH - 1]), [], []

    def enter(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        rows.append(attention_rows(module, states[0], cos[0], sin[0], queries))

    def leave(module, args, kwargs, output):
        weights.append(output[1][0, :, queries].mean(dim=0))

    embeds = torch.randn(1, LENGTH, SIZES["hidden_size"])
    if getattr(
        model.config, "hidden_size_per_layer_input", 0
    ):  # looked up by ids, which the stock model finds by their embeddings
        embeds = model.get_input_embeddings()(torch.randint(3, 30, (1, LENGTH))).detach()
    with torch.no_grad(), attached(*(Hook(attention, pre=enter, post=leave) for attention in attending)):
        model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=torch.ones(1, LENGTH, dtype=torch.long),
        )
    assert len(rows) == len(attending) > 0
    torch.testing.assert_close(torch.stack(rows), torch.stack(weights), atol=1e-5, rtol=1e-4)
    # Not the same for any two queries and keys: the weights say something.
    assert torch.stack(weights).std() > 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_products_of_half_precision(dtype):
    """Queries and keys as of Qwen2, whose biases make products beyond float16: weights as kernels have them, that add up in single precision."""
    attention = text_model("qwen2").layers[0].self_attn.to(dtype)
    with torch.no_grad():
        for projection, size in ((attention.q_proj, 100), (attention.k_proj, 400)):
            projection.bias.copy_(size * torch.randn_like(projection.bias))
    states = torch.randn(LENGTH, SIZES["hidden_size"], dtype=dtype)
    cos, sin = torch.ones(2, LENGTH, attention.head_dim, dtype=dtype).unbind()
    with torch.no_grad():
        query = stock_queries(attention, states, cos, sin).double()
        key = stock_keys(attention, states, cos, sin).double()
        found = attention_rows(attention, states, cos, sin, torch.arange(LENGTH))
    logits = query @ key.repeat_interleave(len(query) // len(key), 0).mT * attention.scaling
    assert (logits / attention.scaling).abs().max() > torch.finfo(torch.float16).max
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    expected = logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(0)
    torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=1e-2)


def test_a_layer_without_attention_weights_is_refused():
    config = text_model("qwen3_5_text").config
    check_readable(config, [3])
    with pytest.raises(
        ValueError, match=r"Layer 1 of the 'qwen3_5_text' language model .* Those of layers 3 can be read."
    ):
        check_readable(config, [3, 1])


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe", "glm4v_text", "gemma3_text"])
def test_ends_of_the_mlp(name):
    """What enters the first is the residual stream, and what leaves the last is added to it."""
    layer = text_model(name).layers[0]
    first, last = mlp_ends(layer)
    seen = {}

    def enter(module, args, kwargs):
        seen["stream"] = args[0]

    def leave(module, args, kwargs, output):
        seen["added"] = output

    def out(module, args, kwargs, output):
        seen["out"] = output

    states = torch.randn(1, LENGTH, SIZES["hidden_size"])
    width = layer.self_attn.head_dim // (2 if name == "glm4v_text" else 1)
    turned = torch.ones(1, LENGTH, width), torch.zeros(1, LENGTH, width)
    with torch.no_grad(), attached(Hook(first, pre=enter), Hook(last, post=leave), Hook(layer, post=out)):
        layer(states, attention_mask=None, position_embeddings=turned)
    torch.testing.assert_close(seen["out"], seen["stream"] + seen["added"])
