"""What stock language models call the kinds of their layers, and the norms that only some layers have."""

from typing import Any

# Kinds of layers, in `config.layer_types`, in which tokens attend to tokens, so that keys and values of each are kept.
ATTENDING = ("full_attention", "sliding_attention", "chunked_attention")

# The two norms behind attention and MLP: of GLM, and of Gemma, whose `post_attention_layernorm` is the first.
GLM_NORMS = frozenset({"post_self_attn_layernorm", "post_mlp_layernorm"})
GEMMA_NORMS = frozenset({"pre_feedforward_layernorm", "post_feedforward_layernorm"})
OUTPUT_NORMS = (GLM_NORMS, GEMMA_NORMS)

# Of Gemma 4: experts beside a layer's MLP, and what reads an input that each layer has of each token.
EXPERTS_BESIDE = frozenset(
    {
        "router",
        "experts",
        "post_feedforward_layernorm_1",
        "pre_feedforward_layernorm_2",
        "post_feedforward_layernorm_2",
    }
)
LAYERS_OWN_INPUT = frozenset({"per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm", "act_fn"})


def has_windows(config: Any) -> bool:
    """Whether a language model has layers of sliding attention."""
    text = config.get_text_config()
    sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    return sliding and getattr(text, "sliding_window", None) is not None


def keeps_states(config: Any) -> bool:
    """Whether a language model has layers that keep one state of all tokens before (linear attention), in place of the keys and values of each."""
    return not set(getattr(config.get_text_config(), "layer_types", None) or ()) <= set(ATTENDING)
