"""What there is to know of a loaded model before it is wrapped: adapters, devices, sizes."""

import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from .._compat import offloaded_to


def base_model(backbone: Any) -> PreTrainedModel:
    """The stock model inside a `PeftModel`, or the model itself."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(backbone, peft.PeftModel):
        return backbone
    if any(config.is_prompt_learning for config in backbone.peft_config.values()):
        raise ValueError(
            "The PeftModel learns prompts, which its base model alone does not see: merge it, or use LoRA-like adapters."
        )
    return backbone.get_base_model()


def embedding_device(backbone: Any) -> torch.device:
    """Where the backbone embeds its prompt; of offloaded embeddings, where they are loaded to."""
    embeddings = backbone.get_input_embeddings()
    device = next(embeddings.parameters()).device
    return offloaded_to(embeddings) or device if device.type == "meta" else device


# Kinds of layers, in `config.layer_types`, in which tokens attend to tokens, so that keys and values of each are kept.
ATTENDING = ("full_attention", "sliding_attention", "chunked_attention")


def keeps_states(config: Any) -> bool:
    """Whether a language model has layers that keep one state of all tokens before (linear attention), in place of the keys and values of each."""
    return not set(getattr(config.get_text_config(), "layer_types", None) or ()) <= set(ATTENDING)
