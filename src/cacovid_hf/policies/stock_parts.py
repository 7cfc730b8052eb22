"""Parts of a stock decoder layer for methods that look into it while it runs."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..backbones.layer_kinds import ATTENDING, GEMMA_NORMS, GLM_NORMS
from ..utils.tensors import rotate
from .rotary import TURNINGS, turning_of


def check_readable(config: Any, layers: Iterable[int]) -> None:
    """Raise a `ValueError` if the attention weights of some layers of the language model of a text config cannot be computed beside it."""
    if config.model_type not in TURNINGS:
        raise ValueError(
            f"How a {config.model_type!r} language model turns queries and keys is not known, so its attention cannot be read. Use a compressor that "
            "does not read it."
        )
    kinds = config.to_dict().get("layer_types")
    if kinds and (layer := next((layer for layer in layers if kinds[layer] not in ATTENDING), None)) is not None:
        attending = ", ".join(str(index) for index, kind in enumerate(kinds) if kind in ATTENDING)
        raise ValueError(
            f"Layer {layer} of the {config.model_type!r} language model is of the kind {kinds[layer]!r} and has no attention weights. Those of layers "
            f"{attending} can be read."
        )


def mlp_ends(layer: Any) -> tuple[nn.Module, nn.Module]:
    """Return the norm before a layer's MLP, and the last part before its result is added to the residual stream."""
    parts = dict(layer.named_children())
    if parts.keys() >= GEMMA_NORMS:
        return parts["pre_feedforward_layernorm"], parts["post_feedforward_layernorm"]
    return parts["post_attention_layernorm"], parts["post_mlp_layernorm" if parts.keys() >= GLM_NORMS else "mlp"]


def stock_queries(attention: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return queries as they meet the keys: normed and turned.

    Args:
        attention: a decoder layer's attention module.
        states: `(n, D)`, its input.
        cos: `(n, E)`, its rotary embedding.
        sin: likewise.

    Returns:
        `(H, n, head_dim)`.
    """
    heads = attention.q_proj(states).unflatten(-1, (attention.config.num_attention_heads, -1))
    # Behind the query stands its gate, in models that have one.
    return _finished(attention, "q_norm", heads[..., : attention.head_dim], cos, sin)


def stock_keys(attention: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys as they meet the queries, `(H, n, head_dim)` of the key-value heads; arguments as of `stock_queries`."""
    heads = attention.k_proj(states).unflatten(-1, (-1, attention.head_dim))
    return _finished(attention, "k_norm", heads, cos, sin)


def _finished(attention: Any, norm: str, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    parts = dict(attention.named_children())
    heads = parts[norm](heads) if norm in parts else heads
    return rotate(heads.transpose(0, 1), cos, sin, turning_of(attention.config.model_type).pairs)
