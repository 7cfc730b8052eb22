"""Tiny random language models of every kind, made from their configs alone, in which every norm, bias, router and factor matters."""

import torch
from transformers import AutoConfig, AutoModel

SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=120,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=48)


def rope(sections=None, **more):
    found = {"rope_type": "default", "rope_theta": 1e4, **more}
    return {"rope_parameters": found | ({"mrope_section": sections} if sections else {})}


# By `model_type`: what its config says beside the sizes.
TEXT_MODELS = {
    "qwen2": {},
    "llama": {"head_dim": 16},
    "llama with biases": {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 16},
    # Rotary embeddings that are stretched: what a config says of it, at lengths within which they are of one kind.
    "llama with llama3": {
        "head_dim": 16,
        **rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    },
    "llama with linear": {"head_dim": 16, **rope(rope_type="linear", factor=4.0)},
    "qwen2 with yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "qwen2 with dynamic": rope(rope_type="dynamic", factor=4.0),
    "llama with longrope": {
        "head_dim": 16,
        "max_position_embeddings": 128,
        **rope(
            rope_type="longrope",
            short_factor=[1.0 + 0.2 * i for i in range(8)],
            long_factor=[2.0 + 0.5 * i for i in range(8)],
            original_max_position_embeddings=32,
        ),
    },
    "qwen3_vl_text with yarn": {
        "head_dim": 24,
        **rope([6, 3, 3], rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    },
    "qwen3": {"head_dim": 24},
    "qwen3_moe": {"head_dim": 24, "norm_topk_prob": True, **EXPERTS},
    "qwen3_moe not normalised": {"head_dim": 24, "norm_topk_prob": False, **EXPERTS},
    "qwen2_vl_text": rope([2, 3, 3]),
    "qwen2_5_vl_text": rope([2, 3, 3]),
    "qwen3_vl_text": {"head_dim": 24, **rope([6, 3, 3])},
    "qwen3_vl_moe_text": {"head_dim": 24, **EXPERTS, **rope([6, 3, 3])},
    "qwen3_5_text": {"head_dim": 32, **rope([2, 1, 1], partial_rotary_factor=0.25)},
    "qwen3_5_moe_text": {"head_dim": 32, **EXPERTS, **rope([2, 1, 1], partial_rotary_factor=0.25)},
    "glm4v_text": rope([1, 1, 2], partial_rotary_factor=0.5),
    "glm4v_moe_text": {
        "n_routed_experts": 4,  # behind layer 0
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        **rope([1, 1, 2], partial_rotary_factor=0.5),
    },
    "gemma3_text": {"head_dim": 24, "layer_types": ["sliding_attention"] * 4 + ["full_attention"]},
    "gemma4_text": {
        "head_dim": 24,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "hidden_size_per_layer_input": 0,
    },
    "gemma4_text attending first": {
        "head_dim": 24,
        "global_head_dim": 32,
        "layer_types": ["full_attention"] * 5,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
    },
    "gemma4_text with experts": {
        "head_dim": 24,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "gemma4_text with per-layer inputs": {
        "head_dim": 24,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 120,
    },
}


def text_model(name: str, **more):
    """A stock language model in which every norm, bias, router and factor changes the result."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **{**SIZES, **TEXT_MODELS[name], **more})
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
            else:
                weight.add_(torch.randn_like(weight) * 0.4)
        for part, buffer in model.named_buffers():
            if part.endswith("layer_scalar"):
                buffer.fill_(0.7)
    return model
