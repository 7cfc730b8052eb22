"""What there is to know of a loaded model before it is wrapped: adapters, devices, sizes."""

import sys
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ._compat import offloaded_to
from .light_policy import make_policy
from .policy import Policy

if TYPE_CHECKING:
    from .configuration import CaCoVidConfig


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


def check_policy_size(policy_config, backbone_config) -> None:
    """Raise a `ValueError` if a policy made for one text config cannot serve the backbone of another."""
    expected, found = backbone_config.get_text_config(), policy_config
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(expected, name) != getattr(found, name):
            raise ValueError(
                f"The policy was made for {name}={getattr(found, name)}, the backbone has {getattr(expected, name)}: use the policy with the "
                "backbone that it was made for."
            )


def untrained_policy(backbone: Any, config: "CaCoVidConfig") -> Policy:
    """The policy that `config` describes, on the device and in the dtype of a stock model: its layer from the LLM's layer 0, random heads."""
    policy = make_policy(config, backbone.config)
    policy.to(device=embedding_device(backbone), dtype=backbone.dtype)
    policy.init_from_layer(backbone.get_decoder().layers[0])
    return policy
