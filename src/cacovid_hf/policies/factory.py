"""Make the policy that a config describes."""

import copy
from typing import Any, Protocol

from ..backbones.loaded import embedding_device
from .base import Policy
from .full import ContributionPolicy
from .light import LightPolicy


class PolicyChoice(Protocol):
    """What a config says of its policy: `CaCoVidConfig`, or `PolicySettings` where there is no config class."""

    policy_type: str
    policy_attention: str


def check_policy_size(policy_config, backbone_config) -> None:
    """Raise a `ValueError` if a policy made for one text config cannot serve the backbone of another."""
    expected, found = backbone_config.get_text_config(), policy_config
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(expected, name) != getattr(found, name):
            raise ValueError(
                f"The policy was made for {name}={getattr(found, name)}, the backbone has {getattr(expected, name)}: use the policy with the "
                "backbone that it was made for."
            )


def untrained_policy(backbone: Any, config: PolicyChoice) -> Policy:
    """The policy that `config` describes, on the device and in the dtype of a stock model: its layer from the LLM's layer 0, random heads."""
    policy = make_policy(config, backbone.config)
    policy.to(device=embedding_device(backbone), dtype=backbone.dtype)
    policy.init_from_layer(backbone.get_decoder().layers[0])
    return policy


POLICIES: dict[str, type[Policy]] = {kind.policy_type: kind for kind in (ContributionPolicy, LightPolicy)}


def make_policy(config: PolicyChoice, backbone_config) -> Policy:
    """The policy that a config asks for, with random weights, for the language model of `backbone_config`."""
    # A copy, because `Trainer` writes settings into the config of what it trains.
    text_config = copy.deepcopy(backbone_config.get_text_config())
    return POLICIES[config.policy_type](text_config, config.policy_attention)
