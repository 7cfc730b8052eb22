"""Make the policy that a config describes."""

import copy
from collections.abc import Callable
from typing import Any, Protocol

from ..backbones.loaded import embedding_device
from .base import Policy
from .full import ContributionPolicy
from .light import LightPolicy
from .residual import ResidualPolicy


class PolicyChoice(Protocol):
    """What a config says of its policy: `CaCoVidConfig`, or `PolicySettings` where there is no config class."""

    policy_type: str
    policy_attention: str


# Of a text config; not every kind of language model has all of them.
SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
    "hidden_size_per_layer_input",
)


def check_policy_size(policy_config, backbone_config) -> None:
    """Raise a `ValueError` if a policy made for one text config cannot serve the backbone of another."""
    expected, found = backbone_config.get_text_config().to_dict(), policy_config.to_dict()
    for name in SIZES:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"The policy was made for {name}={found.get(name)}, the backbone has {expected.get(name)}: use the policy with the "
                "backbone that it was made for."
            )


def untrained_policy(backbone: Any, config: PolicyChoice) -> Policy:
    """Return the policy that `config` describes, on the device and in the dtype of a stock model: its layer from the LLM, random heads.

    The layer is the LLM's layer 0. Where that is linear attention, it is the first one that attends.
    """
    policy = make_policy(config, backbone.config)
    policy.to(device=embedding_device(backbone), dtype=backbone.dtype)
    decoder = backbone.get_decoder()
    policy.init_from_layer(decoder.layers[policy.shape.layer], decoder)
    return policy


POLICIES: dict[str, Callable[[Any, str], Policy]] = {
    kind.policy_type: kind for kind in (ContributionPolicy, LightPolicy, ResidualPolicy)
}


def make_policy(config: PolicyChoice, backbone_config) -> Policy:
    """Return the policy that a config asks for, with random weights, for the language model of `backbone_config`."""
    # A copy, because `Trainer` writes settings into the config of what it trains.
    text_config = copy.deepcopy(backbone_config.get_text_config())
    return POLICIES[config.policy_type](text_config, config.policy_attention)
