"""The policies against the stock layer that they start from, for every kind of language model, all of whose parts are made to matter."""

import re

import pytest
import torch
from helpers.text_models import SIZES, TEXT_MODELS, text_model
from transformers import AutoConfig

from cacovid_hf import ContributionPolicy, LightPolicy
from cacovid_hf.policies.layer import attend
from cacovid_hf.prompt import PromptLayout, VideoSpan
from cacovid_hf.utils.hooks import Hook, attached

LINEAR_FIRST = ("qwen3_5_text", "qwen3_5_moe_text")
LENGTH, GRID, FIRST = 19, (3, 2, 2), 4


def prompt(model):
    """Embeddings `(1, L, D)`, positions with unequal rows where the model has them, and what is where: text, a video, text."""
    embeds = torch.randn(1, LENGTH, SIZES["hidden_size"])
    places = torch.arange(LENGTH)
    number = GRID[0] * GRID[1] * GRID[2]
    span = VideoSpan(0, GRID, torch.arange(FIRST, FIRST + number))
    text = torch.ones(1, LENGTH, dtype=torch.bool)
    text[0, span.positions] = False
    layout = PromptLayout(valid=torch.ones(1, LENGTH, dtype=torch.bool), text=text, videos=(span,))
    if "mrope_section" not in model.config.rope_parameters:
        return embeds, places[None], layout
    rows = torch.stack([places, places, places * 2 % 13, places * 3 % 17])  # (4, L): text, time, height, width
    return embeds, rows[:, None], layout


def seen_mask(attention, layout):
    """What the video may attend to, added to scores: `(1, 1, L, L)`."""
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    if attention == "causal":
        allowed = allowed.tril()
    if attention == "question":
        allowed = layout.text[0].expand(LENGTH, LENGTH)
    return torch.zeros(LENGTH, LENGTH).masked_fill(~allowed, -torch.inf)[None, None]


def run(model, number, embeds, positions, mask):
    """The stock model with this mask in one layer: what goes into the layer, what comes out, and its heads before the output projection."""
    layer, seen = model.layers[number], {}

    def masked(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    def look(module, args, kwargs, output):
        seen.update(given=(args[0] if args else kwargs["hidden_states"]).clone(), out=output.clone())

    def heads(module, args, kwargs):
        seen["mixed"] = args[0].clone()

    hooks = Hook(layer.self_attn, pre=masked), Hook(layer, post=look), Hook(layer.self_attn.o_proj, pre=heads)
    with torch.no_grad(), attached(*hooks):
        model(inputs_embeds=embeds, position_ids=positions, attention_mask=torch.ones(1, LENGTH, dtype=torch.long))
    return seen["given"][0], seen["out"][0], seen["mixed"][0]


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "question"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_the_full_policys_layer_is_the_stock_layer(name, attention):
    model = text_model(name)
    policy = ContributionPolicy(model.config, attention)
    number = 3 if name in LINEAR_FIRST else 0
    assert policy.shape.layer == number
    policy.init_from_layer(model.layers[number])
    embeds, positions, layout = prompt(model)
    given, out, _ = run(model, number, embeds, positions, seen_mask(attention, layout))
    places = layout.videos[0].positions
    with torch.no_grad():
        context = policy._context(given, positions[..., 0, :], layout, 0)
        found = policy._states(context, given, positions[..., 0, :], places)
    torch.testing.assert_close(found, out[places], atol=2e-4, rtol=1e-4)
    # And far from what comes in, so that the comparison says something.
    assert (found - given[places]).abs().mean() > 0.1


def held_and_read(policy, given, positions, layout):
    """The values of the video's tokens and what they read, `(n, W)` each: what the trunk would compare."""
    places, layer = layout.videos[0].positions, policy.layer
    with torch.no_grad():
        key, value = policy._context(given, positions[..., 0, :], layout, 0)
        states = layer.input_layernorm(given[places])
        query = layer.queries(states, policy._rope(positions[..., 0, :][..., places]))
        return layer.values(states).transpose(0, 1).flatten(1), attend(query, key, value, scale=policy.shape.scale)


@pytest.mark.parametrize("name", [name for name in TEXT_MODELS if name != "gemma4_text attending first"])
def test_the_light_policy_reads_as_the_stock_layer_does(name):
    """Exactly, where every query has a key of its own: with as many keys as queries the mean is of one."""
    model = text_model(name, num_key_value_heads=SIZES["num_attention_heads"])
    policy = LightPolicy(model.config)
    number = 3 if name in LINEAR_FIRST else 0
    policy.init_from_layer(model.layers[number])
    embeds, positions, layout = prompt(model)
    given, _, expected = run(model, number, embeds, positions, seen_mask("question", layout))
    if name in LINEAR_FIRST:  # what it reads is then multiplied by a gate, which the light policy does not have
        with torch.no_grad():
            both = model.layers[number].self_attn.q_proj(model.layers[number].input_layernorm(given))
        expected = expected / both.view(LENGTH, SIZES["num_attention_heads"], 2, -1)[:, :, 1].flatten(1).sigmoid()
    held, read = held_and_read(policy, given, positions, layout)
    torch.testing.assert_close(read, expected[layout.videos[0].positions], atol=2e-4, rtol=1e-4)
    (output,) = policy(embeds, positions, layout)
    assert output.token_logits.shape == (*GRID[:1], GRID[1] * GRID[2], 2)
    assert held.shape == read.shape


@pytest.mark.parametrize("name", ["llama with biases", "qwen3_vl_text", "qwen3_5_text", "gemma4_text attending first"])
def test_a_light_query_is_the_mean_of_those_that_share_a_key(name):
    """Normed behind the mean where the model norms its queries."""
    model = text_model(name)
    policy = LightPolicy(model.config)
    layer = model.layers[policy.shape.layer]
    policy.init_from_layer(layer)
    states = torch.randn(3, SIZES["hidden_size"])
    shape, at_zero = policy.shape, torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        queries = layer.self_attn.q_proj(states).view(3, SIZES["num_attention_heads"], -1)[..., : shape.head_dim]
        expected = queries.unflatten(1, (shape.num_key_value_heads, -1)).mean(2)
        if shape.norms:
            expected = layer.self_attn.q_norm(expected)
        found = policy.layer.queries(states, policy._rope(at_zero)).transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


REFUSED = {
    "gemma4_text": ({"hidden_size_per_layer_input": 8}, "per_layer_input_gate"),
    "gpt_oss": (
        {"head_dim": 16, "num_local_experts": 4},
        "decoder layer, and that of a 'gpt_oss' language model is not known",
    ),
    "glm4v_moe_text": (
        {"first_k_dense_replace": 0, "n_routed_experts": 4, "moe_intermediate_size": 8},
        "mlp.shared_experts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_is_not_imitated_is_refused_and_the_light_policy_works(name):
    settings, words = REFUSED[name]
    config = AutoConfig.for_model(name, **{**SIZES, **settings})
    with pytest.raises(ValueError, match=rf"{re.escape(words)}.*Use policy_type='light'") as caught:
        ContributionPolicy(config)
    assert repr(name) in str(caught.value)
    policy = LightPolicy(config)
    embeds, _, layout = prompt(policy)
    (output,) = policy(embeds, torch.arange(LENGTH)[None], layout)
    assert bool(output.token_logits.isfinite().all())


def test_a_model_in_which_nothing_attends_is_refused():
    config = AutoConfig.for_model("qwen3_5_text", **SIZES, layer_types=["linear_attention"] * 5)
    for kind in (ContributionPolicy, LightPolicy):
        with pytest.raises(ValueError, match="No layer of the 'qwen3_5_text' language model attends"):
            kind(config)


def test_a_layer_of_linear_attention_is_refused():
    model = text_model("qwen3_5_text")
    for kind in (ContributionPolicy, LightPolicy):
        with pytest.raises(ValueError, match=r"does not attend. Give the layer of index policy.shape.layer"):
            kind(model.config).init_from_layer(model.layers[0])
