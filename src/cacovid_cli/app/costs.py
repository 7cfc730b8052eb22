"""What a prompt costs the language model, by formula: tokens, operations of the prefill, bytes of the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cacovid_hf.backbones.layer_kinds import keeps_states
from cacovid_hf.utils.operations import Shape


@dataclass(frozen=True)
class Cost:
    """Of one prompt.

    Attributes:
        tokens: words and video tokens that the first layer reads.
        operations: floating-point operations of the prefill; None where the formula does not hold.
        cache_bytes: keys and values that every later token reads; None likewise.
        policy: floating-point operations of the policy that chose the tokens; None where there is none, or the formula does not hold.
    """

    tokens: int
    operations: float | None
    cache_bytes: float | None
    policy: float | None = None

    @property
    def all_operations(self) -> float | None:
        """Of policy and prefill."""
        return None if self.operations is None else self.operations + (self.policy or 0.0)


def prompt_cost(
    config: Any, dtype: torch.dtype, layer_tokens: Sequence[int], policy: tuple[str, str, int, int] | None = None
) -> Cost:
    """Return the cost of a prompt of which each layer reads so many tokens.

    Operations are not counted for language models with experts, and nothing but tokens for those with linear attention.

    Args:
        config: of the backbone.
        dtype: of the cache.
        layer_tokens: one number per layer, or a single one for all layers.
        policy: what scored the tokens, its type and its attention; how many video tokens, beside how many words.
    """
    text = config.get_text_config()
    tokens = layer_tokens[0]
    if keeps_states(config):
        return Cost(tokens, None, None)
    shape = Shape(text, dtype.itemsize)
    lengths = list(layer_tokens) if len(layer_tokens) > 1 else list(layer_tokens) * shape.layers
    cache = sum(shape.kv_bytes(1, length) for length in lengths) / shape.layers
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        return Cost(tokens, None, cache)
    operations = sum(shape.prefill(1, length).flops for length in lengths) / shape.layers
    return Cost(tokens, operations, cache, None if policy is None else _policy_operations(shape, *policy))


def _policy_operations(shape: Shape, kind: str, attention: str, video: int, words: int) -> float:
    return shape.policy(kind, attention, 1, video, words).flops
