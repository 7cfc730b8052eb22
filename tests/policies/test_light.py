"""The light policy against the plain computation, against the layer that it starts from, and its cost."""

import pytest
import torch
from helpers.models import FAMILIES, PROMPTS, prompt_inputs, stock_model
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, ContributionPolicy, LightPolicy
from cacovid_hf.prompt import PromptLayout, VideoSpan


def light_model(family="llava_onevision", **options):
    stock = stock_model(family)
    return CaCoVidForConditionalGeneration.from_backbone(
        stock, policy_type="light", base_model_name_or_path="some/id", **options
    )


def embedded(model, prompt):
    inputs = prompt_inputs(model.backbone, PROMPTS[prompt])
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    layout = model.family.layout(model.backbone.config, ids, mask, inputs)
    with torch.no_grad():
        return model.family.embed(model.backbone, layout, ids, mask, inputs)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_plain_computation(family, prompt):
    """Whole rows, a dense mask, one head after the other."""
    model = light_model(family)
    policy, whole = model.policy, embedded(model, prompt)
    layer, shape = policy.layer, policy.shape
    with torch.no_grad():
        outputs = policy(whole.inputs_embeds, whole.position_ids, whole.layout)
        for span, output in zip(whole.layout.videos, outputs, strict=True):
            states = layer.input_layernorm(whole.inputs_embeds[span.row])
            rope = policy._rope(whole.position_ids[..., span.row, :])
            query, key, value = layer.queries(states, rope), layer.keys(states, rope), layer.values(states)
            read = []
            for head in range(shape.num_key_value_heads):
                scores = query[head] @ key[head].T * (shape.scale or shape.head_dim**-0.5)
                scores = scores.masked_fill(~whole.layout.text[span.row], float("-inf")).softmax(-1)
                read.append(scores @ value[head])
            value = value.transpose(0, 1).flatten(1)
            held, read = policy.norm(value), policy.norm(torch.cat(read, -1))
            hidden = F.silu(policy.trunk(torch.cat((held, read, held * read), -1)))[span.positions]
            frames = hidden.view(span.num_frames, span.tokens_per_frame, -1)
            tokens = policy.token_head(frames)
            torch.testing.assert_close(output.token_logits, tokens, atol=2e-5, rtol=1e-4)
            pooled = torch.cat((frames.mean(1), frames.max(1).values), -1)
            torch.testing.assert_close(output.frame_logits, policy.frame_head(pooled), atol=2e-5, rtol=1e-4)


def test_it_starts_from_the_language_models_layer_0():
    """A mean query scores a key by the mean of what the queries of its group score it, where the model does not norm its queries."""
    model = light_model()
    policy, shape = model.policy, model.policy.shape
    attention = model.get_decoder().layers[0].self_attn
    groups = (shape.num_key_value_heads, -1, shape.head_dim)
    states = torch.randn(5, shape.hidden_size)
    with torch.no_grad():
        queries = attention.q_proj(states).unflatten(-1, groups)  # (n, kv heads, queries of a key, head_dim)
        keys = attention.k_proj(states).unflatten(-1, (groups[0], shape.head_dim))
        expected = torch.einsum("nkqd,mkd->nmkq", queries, keys).mean(-1)
        ours = policy.layer.q_proj(states).unflatten(-1, (groups[0], shape.head_dim))
        found = torch.einsum(
            "nkd,mkd->nmk", ours, policy.layer.k_proj(states).unflatten(-1, (groups[0], shape.head_dim))
        )
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(policy.layer.v_proj(states), attention.v_proj(states))


def test_a_checkpoint_keeps_its_kind(tmp_path):
    model = light_model()
    model.save_pretrained(tmp_path)
    loaded = CaCoVidForConditionalGeneration.from_pretrained(tmp_path, backbone=model.backbone)
    assert loaded.config.policy_type == "light"
    assert isinstance(loaded.policy, LightPolicy)
    assert all(torch.equal(a, b) for a, b in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True))
    around = CaCoVidForConditionalGeneration.from_backbone(model.backbone, policy=model.policy)
    assert around.config.policy_type == "light"
    with pytest.raises(ValueError, match="do not fit its config"):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path, backbone=model.backbone, policy_type="full")
    with pytest.raises(ValueError, match="policy_type='full' is asked for, and the given policy has 'light'"):
        CaCoVidForConditionalGeneration.from_backbone(model.backbone, policy=model.policy, policy_type="full")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_type": "heavy"}, "policy_type='heavy' is unknown: choose one of 'full', 'light', 'residual'"),
        (
            {"policy_type": "light", "policy_attention": "causal"},
            "policy_attention='causal' does not go with policy_type='light'",
        ),
    ],
)
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        CaCoVidConfig(**settings)


SHAPES = {  # hidden, intermediate, heads, key-value heads: LLaVA-OneVision 7B and 0.5B, Qwen2.5-VL 3B
    "7b": (3584, 18944, 28, 4),
    "0.5b": (896, 4864, 14, 2),
    "3b": (2048, 11008, 16, 2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cost_against_the_full_policy(shape):
    """Counted, not measured: 32 frames of 196 tokens and 32 text tokens at the published shapes, without memory for weights."""
    hidden, intermediate, heads, kv_heads = SHAPES[shape]
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    video, length = 32 * 196, 32 * 196 + 32
    text = torch.arange(length)[None] >= video
    span = VideoSpan(0, (32, 14, 14), torch.arange(video))
    layout = PromptLayout(valid=torch.ones(1, length, dtype=torch.bool), text=text, videos=(span,))
    flops = {}
    for kind in (ContributionPolicy, LightPolicy):
        with torch.device("meta"):
            policy = kind(config)
            embeds, positions = torch.empty(1, length, hidden), torch.arange(length)[None]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            policy(embeds, positions, layout)
        flops[kind] = counter.get_total_flops()
    assert flops[ContributionPolicy] > 2 * video * 3 * hidden * intermediate
    assert flops[LightPolicy] < flops[ContributionPolicy] / 40
