"""The policies against the stock layer that they start from, for every kind of language model, all of whose parts are made to matter."""

import re

import pytest
import torch
from accelerate import disk_offload
from helpers.text_models import SIZES, TEXT_MODELS, text_model
from transformers import AutoConfig

from cacovid_hf import ContributionPolicy, LightPolicy
from cacovid_hf.policies.layer import attend, turned_at
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
    inputs = {"position_ids": positions, "attention_mask": torch.ones(1, LENGTH, dtype=torch.long)}
    with torch.no_grad(), attached(*hooks):
        if getattr(model.config, "hidden_size_per_layer_input", 0):  # as those of a video's placeholders
            ids = torch.full((1, LENGTH), SIZES["pad_token_id"])
            inputs["per_layer_inputs"] = model.get_per_layer_inputs(ids, None)
        model(inputs_embeds=embeds, **inputs)
    return seen["given"][0], seen["out"][0], seen["mixed"][0]


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "question"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_the_full_policys_layer_is_the_stock_layer(name, attention):
    model = text_model(name)
    policy = ContributionPolicy(model.config, attention)
    number = 3 if name in LINEAR_FIRST else 0
    assert policy.shape.layer == number
    policy.init_from_layer(model.layers[number], model)
    embeds, positions, layout = prompt(model)
    given, out, _ = run(model, number, embeds, positions, seen_mask(attention, layout))
    places = layout.videos[0].positions
    with torch.no_grad():
        rope = policy._rope(positions[..., 0, :])
        context = policy._context(given, rope, layout, 0)
        found = policy._states(context, given, rope, places, places)
    torch.testing.assert_close(found, out[places], atol=2e-4, rtol=1e-4)
    # And far from what comes in, so that the comparison says something.
    assert (found - given[places]).abs().mean() > 0.1


def held_and_read(policy, given, positions, layout):
    """The values of the video's tokens and what they read, `(n, W)` each: what the trunk would compare."""
    places, layer = layout.videos[0].positions, policy.layer
    with torch.no_grad():
        rope = policy._rope(positions[..., 0, :])
        key, value = policy._context(given, rope, layout, 0)
        states = layer.input_layernorm(given[places])
        query = layer.queries(states, turned_at(rope, places))
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


def test_a_layer_with_inputs_of_its_own_needs_its_language_model():
    model = text_model("gemma4_text with per-layer inputs")
    with pytest.raises(ValueError, match=r"its language model makes. Call init_from_layer\(layer, language_model\)"):
        ContributionPolicy(model.config).init_from_layer(model.layers[0])


def test_inputs_of_its_own_are_read_off_an_offloaded_language_model(tmp_path):
    model = text_model("gemma4_text with per-layer inputs")
    policies = [ContributionPolicy(model.config), ContributionPolicy(model.config)]
    policies[0].init_from_layer(model.layers[0], model)
    disk_offload(model, tmp_path, execution_device="cpu")
    assert model.embed_tokens_per_layer.weight.is_meta
    policies[1].init_from_layer(model.layers[0], model)
    expected, found = (policy.layer.own_input.state_dict() for policy in policies)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)


REFUSED = {
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


@pytest.mark.parametrize(
    ("name", "words"), [("phi3", "has o_proj, qkv_proj"), ("olmo2", "has other norms"), ("cohere", "has other norms")]
)
def test_attention_that_no_policy_can_start_from_is_refused(name, words):
    """Fused queries and keys; norms over all heads; norms that subtract the mean."""
    config = AutoConfig.for_model(name, **SIZES)
    for kind in (ContributionPolicy, LightPolicy):
        with pytest.raises(ValueError, match=rf"{name}.*{words}.*Use a compressor without a policy"):
            kind(config)


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


HEADS = [
    "norm.weight",
    *(f"{head}_head.{i}.{kind}" for head in ("token", "frame") for i in range(0, 10, 2) for kind in ("bias", "weight")),
]
QKVO = [f"layer.self_attn.{name}_proj.weight" for name in "qkvo"]
QKV_BIAS = [f"layer.self_attn.{name}_proj.bias" for name in "qkv"]
NORMS = ["layer.input_layernorm.weight", "layer.post_attention_layernorm.weight"]
HEAD_NORMS = ["layer.self_attn.q_norm.weight", "layer.self_attn.k_norm.weight"]
OUTPUT_NORMS = ["layer.attention_output_norm.weight", "layer.mlp_output_norm.weight"]
GATED_MLP = [f"layer.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
GEMMA4 = [*QKVO, *HEAD_NORMS, *NORMS, *OUTPUT_NORMS, "layer.output_scale", *GATED_MLP]
KEYS = {
    "qwen2": [*QKVO, *QKV_BIAS, *NORMS, *GATED_MLP],
    "qwen3_vl_text": [*QKVO, *HEAD_NORMS, *NORMS, *GATED_MLP],
    "qwen3_5_moe_text": [
        *QKVO,
        "layer.self_attn.gate_proj.weight",
        *HEAD_NORMS,
        *NORMS,
        "layer.mlp.router.weight",
        *(f"layer.mlp.experts.{name}_proj" for name in ("gate", "up", "down")),
        *(f"layer.mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")),
        "layer.mlp.shared_expert_gate.weight",
    ],
    "glm4v_text": [*QKVO, *QKV_BIAS, *NORMS, *OUTPUT_NORMS, *GATED_MLP],
    "gemma4_text": GEMMA4,
    "gemma4_text with experts": [
        *GEMMA4,
        "layer.beside.router.weight",
        *(f"layer.beside.experts.{name}_proj" for name in ("gate", "up", "down")),
        *(f"layer.beside.{name}_norm.weight" for name in ("mlp", "input", "output")),
    ],
    "gemma4_text with per-layer inputs": [
        *GEMMA4,
        "layer.own_input.token",
        *(f"layer.own_input.{name}.weight" for name in ("proj", "norm", "gate_proj", "output_proj", "output_norm")),
    ],
}
READING = ["layer.input_layernorm.weight", *(f"layer.{name}_proj.weight" for name in "qkv")]
LIGHT_HEADS = [f"{head}_head.{i}.{kind}" for head in ("token", "frame") for i in (0, 2) for kind in ("bias", "weight")]
LIGHT_KEYS = {
    "qwen2": [f"layer.{name}_proj.bias" for name in "qkv"],
    "qwen3_vl_text": ["layer.q_norm.weight", "layer.k_norm.weight"],
    "qwen3_5_moe_text": ["layer.q_norm.weight", "layer.k_norm.weight"],
    "glm4v_text": [f"layer.{name}_proj.bias" for name in "qkv"],
    **{name: ["layer.q_norm.weight", "layer.k_norm.weight"] for name in KEYS if name.startswith("gemma4_text")},
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_a_checkpoint(name):
    """They are its format: one name for one part, whatever stock layers call it."""
    config = text_model(name).config
    with torch.device("meta"):
        full, light = ContributionPolicy(config), LightPolicy(config)
    assert sorted(full.state_dict()) == sorted(KEYS[name] + HEADS)
    trunk = ["norm.weight", "trunk.weight", "trunk.bias"]
    assert sorted(light.state_dict()) == sorted(READING + LIGHT_KEYS[name] + LIGHT_HEADS + trunk)


@pytest.mark.parametrize("kind", [ContributionPolicy, LightPolicy])
@pytest.mark.parametrize("name", KEYS)
def test_weights_on_a_policy_without_memory_give_the_same_scores(name, kind):
    """As checkpoints are loaded: nothing of a policy stands outside its weights."""
    model = text_model(name)
    policy = kind(model.config)
    policy.init_from_layer(model.layers[policy.shape.layer], model)
    with torch.device("meta"):
        loaded = kind(model.config)
    loaded.load_state_dict(policy.state_dict(), assign=True)
    arguments = prompt(model)
    (expected,), (found,) = policy(*arguments), loaded(*arguments)
    assert torch.equal(found.token_logits, expected.token_logits)
    assert torch.equal(found.frame_logits, expected.frame_logits)


class Opaque(torch.nn.Linear):
    """A linear layer of which only the output may be believed, as of a quantised one."""


class Doubled(torch.nn.Linear):
    """A linear layer with an adapter that doubles it, and with dropout in training."""

    def forward(self, given):
        return 2 * torch.nn.functional.dropout(super().forward(given), 0.5, self.training)


@pytest.mark.parametrize("name", ["llama with biases", "qwen3_5_text", "glm4v_text"])
def test_parts_of_fused_projections_are_read_off_their_output(name):
    model = text_model(name)
    policies = [ContributionPolicy(model.config), ContributionPolicy(model.config)]
    layer = model.layers[policies[0].shape.layer]
    policies[0].init_from_layer(layer)
    for part in [*layer.self_attn.children(), *layer.mlp.children()]:
        if type(part) is torch.nn.Linear:
            part.__class__ = Opaque
    policies[1].init_from_layer(layer)
    plain, read = (policy.layer.state_dict() for policy in policies)
    for key, weight in plain.items():
        torch.testing.assert_close(read[key], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in TEXT_MODELS if "gemma4" in name])
def test_gemmas_further_linears_are_read_off_their_output(name):
    """The router, and what makes and takes a layer's own input: an adapter there counts, and its dropout does not."""
    model = text_model(name)
    policies = [ContributionPolicy(model.config), ContributionPolicy(model.config)]
    layer = model.layers[policies[0].shape.layer]
    linears = [part for part in layer.modules() if type(part) is torch.nn.Linear]
    projection = getattr(model, "per_layer_model_projection", None)
    for part in [*linears, *([] if projection is None else [projection])]:
        part.__class__ = Doubled
    policies[0].init_from_layer(layer, model)
    model.train()
    policies[1].init_from_layer(layer, model)
    assert all(part.training for part in model.modules())
    for key, weight in policies[0].layer.state_dict().items():
        torch.testing.assert_close(policies[1].layer.state_dict()[key], weight, atol=1e-6, rtol=1e-5)
    if getattr(layer, "router", None) is not None:
        factors = layer.router.scale * layer.router.scalar_root_size
        (read,) = (one for key, one in policies[0].layer.state_dict().items() if key.endswith("router.weight"))
        torch.testing.assert_close(read, 2 * layer.router.proj.weight * factors, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "added"), [("qwen3", 0.0), ("qwen3_5_text", 1.0), ("gemma3_text", 1.0), ("gemma4_text", 0.0)]
)
def test_a_norms_weight_is_its_factor(name, added):
    model = text_model(name).bfloat16()
    for kind in (ContributionPolicy, LightPolicy):
        policy = kind(model.config)
        layer = model.layers[policy.shape.layer]
        policy.init_from_layer(layer)
        assert torch.equal(policy.layer.input_layernorm.weight, layer.input_layernorm.weight.float() + added)


def test_experts_that_are_not_in_memory_are_named():
    model = text_model("qwen3_moe")
    model.layers[0].mlp.experts.to("meta")
    with pytest.raises(ValueError, match="experts of the language model are offloaded or quantised"):
        ContributionPolicy(model.config).init_from_layer(model.layers[0])


def test_experts_learn_by_what_they_served():
    """Gradients reach the chosen experts and the router alone."""
    model = text_model("qwen3_moe")
    policy = ContributionPolicy(model.config)
    policy.init_from_layer(model.layers[0])
    experts = policy.layer.mlp
    states = torch.randn(2, SIZES["hidden_size"])
    experts(states).square().sum().backward()
    chosen = set(experts.router(states).topk(experts.shape.chosen).indices.flatten().tolist())
    assert chosen < set(range(experts.shape.count))
    moved = experts.experts.down_proj.grad.abs().sum(dim=(1, 2)).nonzero()[:, 0].tolist()
    assert set(moved) == chosen
    assert experts.router.weight.grad.abs().sum() > 0
