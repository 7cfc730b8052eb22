"""The policy against the published code's logits, against the language model's own layer 0, and under padding and batching."""

import pytest
import torch
from helpers.families.base import WORD_FIELDS, amplify_experts
from helpers.golden import golden, policy_cases, policy_layout, with_prefix
from helpers.models import (
    BY_NAME,
    FAMILIES,
    PROMPTS,
    RAGGED,
    Video,
    for_forward,
    masked_inputs,
    prompt_inputs,
    share,
    stock_model,
)
from transformers import Qwen2Config

from cacovid_hf import CaCoVidForConditionalGeneration, ContributionPolicy, select_tokens
from cacovid_hf._compat import older_transformers
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.compressors.tools.selection import contribution_budget
from cacovid_hf.utils.hooks import Hook, attached

INDEX, TENSORS = golden("policy")
GOLDEN_CONFIG = Qwen2Config(
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
)
RENAMED = {
    "layers.0.": "layer.",
    "layernorm.weight": "norm.weight",
    "token_compress.": "token_head.",
    "frame_compress.": "frame_head.",
}
ATTENTIONS = {"causal": "causal", "noncausal": "bidirectional"}
KINDS = {
    **{attention: {"policy_attention": attention} for attention in ("causal", "bidirectional", "question")},
    "light": {"policy_type": "light"},
    "residual": {"policy_type": "residual"},
    "residual, blind": {"policy_type": "residual", "policy_attention": "none"},
}


def golden_policy(attention):
    policy = ContributionPolicy(GOLDEN_CONFIG, attention)
    weights = {}
    for name, tensor in with_prefix(TENSORS, "polA.sd.").items():
        for old, new in RENAMED.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = tensor
    policy.load_state_dict(weights)
    return policy


@pytest.mark.parametrize(("name", "attention", "grid"), policy_cases(TENSORS))
def test_golden_logits(name, attention, grid):
    layout = policy_layout(TENSORS, name, grid)
    with torch.no_grad():
        policy = golden_policy(ATTENTIONS[attention])
        (output,) = policy(TENSORS[f"{name}.inputs_embeds"], TENSORS[f"{name}.position_ids"], layout)
    for ours, kind in ((output.token_logits.flatten(0, 1), "token"), (output.frame_logits, "frame")):
        torch.testing.assert_close(ours, TENSORS[f"{name}.{attention}.{kind}_compress_logits"], atol=1e-5, rtol=0)

    case = next((case for case in INDEX["cases"] if case["name"] == name), None)
    if case is None:
        return
    rows = next(entry["rows"] for entry in case["selection"] if entry["attention"] == attention)
    for number, row in enumerate(rows):
        tokens, ratio = layout.videos[0].num_tokens, row["topk"]
        if contribution_budget(tokens, ratio, row["imp_ratio"]) < grid[0]:
            continue
        keep = select_tokens(
            output.token_scores,
            output.frame_scores,
            ratio,
            contribution_share=row["imp_ratio"],
            frame_cap=row["max_sample_ratio_for_each_frame"] / ratio,
        )
        assert torch.equal(keep.flatten(), TENSORS[f"{name}.{attention}.selection"][number] > 0), row


@pytest.mark.spread(6)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_is_the_language_models_layer(family, prompt):
    """Causally, and initialised from it, the policy's layer computes what the LLM's first attending layer computes: rotary embedding
    (M-RoPE too), grouped heads, norms and MLP; whatever the padding. The policy's has no window.
    """
    check_layer(stock_model(family, **BY_NAME[family].without_windows), prompt)


GEMMA4 = {
    "per-layer inputs": dict(hidden_size_per_layer_input=8),
    "experts": dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
}


@pytest.mark.skipif(
    bool(older_transformers(BACKBONES["gemma4"].since)), reason=f"needs transformers {BACKBONES['gemma4'].since}"
)
@pytest.mark.parametrize("prompt", ["ragged batch", "image beside video"])
@pytest.mark.parametrize("kind", GEMMA4)
def test_the_layer_is_that_of_every_gemma4(kind, prompt):
    """What a layer knows of a video's token beside its embedding is that of padding, as in the stock model."""
    stock = stock_model("gemma4", **{**BY_NAME["gemma4"].without_windows, **GEMMA4[kind]})
    with torch.no_grad():
        amplify_experts(stock)
        if kind == "per-layer inputs":
            stock.get_decoder().embed_tokens_per_layer.weight.normal_()
    check_layer(stock, prompt)


def check_layer(stock, prompt):
    model = CaCoVidForConditionalGeneration.from_backbone(stock, policy_attention="causal")
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    mask = inputs["attention_mask"]
    layout = model.family.layout(stock.config, inputs["input_ids"], mask, inputs)
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    embedded = model.family.embed(stock, layout, inputs["input_ids"], mask, rest)
    number, seen = model.policy.shape.layer, {}

    def look(module, args, kwargs, output):
        seen.update(given=args[0] if args else kwargs["hidden_states"], out=output.clone())

    everything = torch.arange(mask.shape[1]).expand(mask.shape).masked_fill(mask == 0, -1)
    with torch.no_grad(), attached(Hook(stock.get_decoder().layers[number], post=look)):
        stock(**for_forward(masked_inputs(stock, inputs, everything)))
        for span in layout.videos:
            given = embedded.inputs_embeds[span.row] if number == 0 else seen["given"][span.row]
            rope = model.policy._rope(embedded.position_ids[..., span.row, :])
            context = model.policy._context(given, rope, layout, span.row)
            ours = model.policy._states(context, given, rope, span.positions, span.positions)
            torch.testing.assert_close(ours, seen["out"][span.row, span.positions], atol=1e-4, rtol=1e-4)


def plain_scores(policy, embeds, positions, layout, span):
    """The policy computed the long way: the whole row, a dense mask, every head everywhere."""
    layer, shape = policy.layer, policy.shape
    length = embeds.shape[0]
    allowed = layout.valid[span.row].expand(length, length).clone()
    if policy.attention == "causal":
        allowed &= torch.ones(length, length).tril().bool()
    if policy.attention == "question":
        allowed &= layout.text[span.row]
    allowed[~layout.valid[span.row]] = True  # padding queries: anything, they are not read
    attention, rope = layer.self_attn, policy._rope(positions)
    normed = layer.input_layernorm(embeds)
    query, key, value = attention.queries(normed, rope), attention.keys(normed, rope), attention.values(normed)
    groups = shape.num_heads // shape.num_key_value_heads
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = query @ key.transpose(1, 2) * (shape.scale or shape.head_dim**-0.5)
    mixed = (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value).transpose(0, 1).flatten(1)
    if shape.gated:
        mixed = mixed * attention.gate_proj(normed).sigmoid()
    states = layer.finish(embeds, mixed)
    tokens = states[span.positions].view(span.num_frames, span.tokens_per_frame, -1)
    return policy.token_head(policy.norm(tokens)), policy.frame_head(policy.norm(tokens.mean(1)))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("attention", ["causal", "bidirectional", "question"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_dense_computation(family, attention, prompt):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, policy_attention=attention)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    mask = inputs.pop("attention_mask")
    ids = inputs.pop("input_ids")
    layout = model.family.layout(stock.config, ids, mask, inputs)
    with torch.no_grad():
        embedded = model.family.embed(stock, layout, ids, mask, inputs)
        outputs = model.policy(embedded.inputs_embeds, embedded.position_ids, layout)
        for span, output in zip(layout.videos, outputs, strict=True):
            tokens, frames = plain_scores(
                model.policy, embedded.inputs_embeds[span.row], embedded.position_ids[..., span.row, :], layout, span
            )
            torch.testing.assert_close(output.token_logits, tokens, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(output.frame_logits, frames, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_who_sees_the_question(kind):
    """A causal policy cannot see a question behind the video, and a blind one sees none; the others can."""
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **KINDS[kind])
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -3] += 1
    scores = [model.compress(**x, retention_ratio=0.5).videos[0].token_scores for x in (inputs, other)]
    assert torch.equal(*scores) == (kind in ("causal", "residual, blind"))


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_scores_as_it_does_alone(family, kind, padding_side):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **KINDS[kind])
    batch = prompt_inputs(stock, RAGGED, padding_side=padding_side)
    together = model.compress(**batch, retention_ratio=0.25)
    for row in range(3):
        places = batch["attention_mask"][row].bool()
        # The three videos are alike in size.
        alone = share(stock, batch, row, 3)
        del alone["attention_mask"]
        alone |= {name: alone[name][:, places] for name in WORD_FIELDS if name in alone}
        single = model.compress(**alone, retention_ratio=0.25)
        torch.testing.assert_close(
            together.videos[row].token_scores, single.videos[0].token_scores, atol=1e-5, rtol=1e-4
        )
        assert torch.equal(together.videos[row].keep, single.videos[0].keep)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight_of_the_policy(kind):
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **KINDS[kind])
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    layout = model.family.layout(stock.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    embedded = model.family.embed(
        stock,
        layout,
        inputs["input_ids"],
        inputs["attention_mask"],
        {"pixel_values_videos": inputs["pixel_values_videos"]},
    )
    (output,) = model.policy(embedded.inputs_embeds.detach(), embedded.position_ids, layout)
    (output.token_logits.square().sum() + output.frame_logits.square().sum()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.policy.parameters())


@pytest.mark.parametrize("policy_type", ["full", "light", "residual"])
def test_question_attention_needs_text(policy_type):
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, policy_type=policy_type)
    ids = torch.tensor([[111] * 17])
    with pytest.raises(ValueError, match="has no text"):
        model.compress(input_ids=ids, pixel_values_videos=torch.zeros(1, 4, 3, 56, 56), retention_ratio=0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_graph_compiles(family, kind):
    """No graph break, whatever the grid; the graph alone, without a compiler of kernels."""
    torch.compiler.reset()
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **KINDS[kind])
    if family.endswith("_moe"):  # the products of experts are traced in half precision alone
        model.policy.to(torch.bfloat16)
    compiled = torch.compile(model.policy, fullgraph=True, backend="eager")
    for prompt in ("one video", "ragged batch"):
        embedded = model.embed(**prompt_inputs(stock, PROMPTS[prompt]))
        arguments = embedded.inputs_embeds, embedded.position_ids, embedded.layout
        with torch.no_grad():
            for ours, plain in zip(compiled(*arguments), model.policy(*arguments), strict=True):
                torch.testing.assert_close(ours.token_logits, plain.token_logits)
                torch.testing.assert_close(ours.frame_logits, plain.frame_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind, monkeypatch):
    """Without gradients a long video is scored some frames at a time."""
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **KINDS[kind])
    embedded = model.embed(**prompt_inputs(stock, PROMPTS["two videos"]))
    arguments = embedded.inputs_embeds, embedded.position_ids, embedded.layout
    calls = []
    read = type(model.policy)._readings
    monkeypatch.setattr(type(model.policy), "_readings", lambda self, x: calls.append(x.shape[:2]) or read(self, x))
    monkeypatch.setattr(type(model.policy), "tokens_per_chunk", 9)  # two frames of four tokens
    whole = model.policy(*arguments)
    assert calls == [(4, 4), (4, 4)]
    with torch.no_grad():
        parts = model.policy(*arguments)
    assert calls[2:] == [(2, 4)] * 4
    for ours, plain in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours.token_logits, plain.token_logits)
        torch.testing.assert_close(ours.frame_logits, plain.frame_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_scores_apart(kind):
    """In bfloat16 the scores are close to those in float32, and float32 themselves: few ties."""
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **KINDS[kind])
    inputs = prompt_inputs(stock, [[3, Video(frames=64), 6]])
    embedded = model.embed(**inputs)
    arguments = embedded.inputs_embeds, embedded.position_ids, embedded.layout
    with torch.no_grad():
        (exact,) = model.policy(*arguments)
        (half,) = model.policy.to(torch.bfloat16)(*arguments)
    assert half.token_scores.dtype == half.frame_scores.dtype == torch.float32
    assert (half.token_scores - exact.token_scores).abs().max() < 0.1 * exact.token_scores.abs().max()
    assert len(half.token_scores.unique()) > 0.9 * half.token_scores.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_under_autocast_are_float32(kind):
    """Of rounded scores many would tie, and the place would decide instead of the policy."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("qwen2_5_vl"), **KINDS[kind])
    prompt = model.embed(**prompt_inputs(model.backbone, [[3, Video(16, 6, 6), 6]]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (output,) = model.policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
    for scores in (output.token_scores, output.frame_scores):
        assert scores.dtype == torch.float32
        assert scores.unique().numel() > 0.9 * scores.numel()
