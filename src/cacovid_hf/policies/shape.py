"""What a decoder layer of a language model consists of, read off the stock layer itself.

The stock layer is built from its config on the meta device, where it costs no memory. So biases, norms, gates and experts are those that stock code makes,
whether its config names them or not. A part that is not known here is an error, not an omission.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from ..backbones.layer_kinds import ATTENDING, EXPERTS_BESIDE, LAYERS_OWN_INPUT, OUTPUT_NORMS
from .rotary import TURNINGS

LIGHT = "Use policy_type='light', or a compressor without a policy."


@dataclass(frozen=True)
class AttentionShape:
    """The attention of a layer.

    Attributes:
        layer: index of the layer in the language model.
        layer_type: its kind, where the config names kinds.
        hidden_size: `D`.
        num_heads: query heads.
        num_key_value_heads: key and value heads.
        head_dim: width of a head.
        biases: which of `q_proj`, `k_proj`, `v_proj`, `o_proj` have one.
        norms: which of `q_norm`, `k_norm`, `v_norm` there are, each over a head.
        gated: whether each head's result is multiplied by a sigmoid of its input.
        scale: what scores are multiplied by; None: `head_dim ** -0.5`.
        eps: of all norms.
    """

    layer: int
    layer_type: str | None
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    biases: frozenset[str]
    norms: frozenset[str]
    gated: bool
    scale: float | None
    eps: float


@dataclass(frozen=True)
class MLPShape:
    """A gated MLP.

    Attributes:
        width: between its projections.
        biased: whether they have biases.
    """

    width: int
    biased: bool


@dataclass(frozen=True)
class ExpertsShape:
    """Experts in the place of an MLP, or beside one.

    Attributes:
        count: how many.
        chosen: how many serve a token.
        width: of each.
        normalised: whether the chosen ones' weights add up to one.
        shared_width: of the expert that serves every token; None: there is none.
    """

    count: int
    chosen: int
    width: int
    normalised: bool
    shared_width: int | None


@dataclass(frozen=True)
class BlockShape:
    """What follows the attention in a layer.

    Attributes:
        activation: name of the MLP's.
        mlp: one, or experts.
        output_norms: whether what attention and MLP add to the residual stream is normed.
        scaled: whether the layer's output is multiplied by a number of its own.
        beside: experts beside the MLP; None: there are none.
        own_input: width of an input that the layer has of each token beside its state; None: there is none.
    """

    activation: str
    mlp: MLPShape | ExpertsShape
    output_norms: bool
    scaled: bool
    beside: ExpertsShape | None
    own_input: int | None


def attending_layers(config: Any) -> list[int]:
    """Return indices of the layers whose tokens attend to each other: all, but in hybrids such as Qwen3.5.

    Raises:
        ValueError: a language model without such a layer.
    """
    values = config.to_dict()
    kinds = values.get("layer_types") or ATTENDING[:1] * values["num_hidden_layers"]
    if found := [index for index, kind in enumerate(kinds) if kind in ATTENDING]:
        return found
    raise ValueError(
        f"No layer of the {config.model_type!r} language model attends (layer_types={sorted(set(kinds))}), so no policy can start from one. "
        "Use a compressor without a policy."
    )


def first_attending_layer(config: Any) -> int:
    """Index of the first layer whose tokens attend to each other: 0, but in hybrids that start with linear attention; errors as of `attending_layers`."""
    return attending_layers(config)[0]


def stock_layer(config: Any) -> nn.Module:
    """Return the first layer that attends of the language model of a text config, on the meta device."""
    index, values = first_attending_layer(config), config.to_dict()
    # One layer more than needed: some models make their last layer one of another kind.
    count = min(index + 2, values["num_hidden_layers"])
    values["num_hidden_layers"] = count
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:count]
    if values.get("num_kv_shared_layers"):
        values["num_kv_shared_layers"] = 0  # those are the last ones
    if by_layer := values.get("per_layer_config"):
        values["per_layer_config"] = {place: own for place, own in by_layer.items() if int(place) < count}
    values.pop("auto_map", None)  # no code but that of transformers
    short = AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = AutoModel.from_config(short, attn_implementation="eager")
    return model.layers[index]


def attention_shape(config: Any, layer: nn.Module) -> AttentionShape:
    """Return the shape of a stock layer's attention.

    Raises:
        ValueError: one that is not made of three projections, or has norms of another kind.
    """
    attention: Any = layer.get_submodule("self_attn")
    parts = dict(attention.named_children())
    if not parts.keys() >= {"q_proj", "k_proj", "o_proj"}:
        raise ValueError(
            f"The attention of a {config.model_type!r} language model has {', '.join(sorted(parts))}: no policy can start from it. "
            "Use a compressor without a policy."
        )
    index, values = first_attending_layer(config), config.to_dict()
    head_dim, heads = attention.head_dim, config.num_attention_heads
    widths = {parts[name].weight.numel() for name in ("q_norm", "k_norm") if name in parts}
    if "rms_norm_eps" not in values or not widths <= {head_dim}:
        raise ValueError(
            f"A {config.model_type!r} language model has other norms than root-mean-square ones over a layer's states and over a head: no policy can "
            "start from it. Use a compressor without a policy."
        )
    kinds = values.get("layer_types")
    projections = {name for name, part in parts.items() if name.endswith("_proj") and part is not None}
    return AttentionShape(
        layer=index,
        layer_type=kinds[index] if kinds else None,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_key_value_heads=parts["k_proj"].out_features // head_dim,
        head_dim=head_dim,
        biases=frozenset(name for name in projections if parts[name].bias is not None),
        norms=frozenset(name for name in ("q_norm", "k_norm", "v_norm") if name in parts),
        gated=parts["q_proj"].out_features == 2 * heads * head_dim,
        scale=None if attention.scaling == head_dim**-0.5 else attention.scaling,
        eps=config.rms_norm_eps,
    )


def block_shape(config: Any, layer: nn.Module) -> BlockShape:
    """Return the shape of the rest of a stock layer.

    Raises:
        ValueError: a layer with a part that the full policy does not imitate.
    """
    if config.model_type not in TURNINGS:
        raise ValueError(
            f"policy_type='full' imitates a decoder layer, and that of a {config.model_type!r} language model is not known. {LIGHT}"
        )
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    parts: dict[str, Any] = dict(layer.named_children())
    mlp_parts = dict(mlp.named_children())
    own = [f"self_attn.{name}" for name, _ in attention.named_parameters(recurse=False)]
    own += [name for name, _ in layer.named_parameters(recurse=False)]
    own += [name for name, _ in layer.named_buffers() if name != "layer_scalar"]
    sandwich = next((names for names in OUTPUT_NORMS if names <= parts.keys()), frozenset())
    routed = {"gate", "experts"} <= mlp_parts.keys()
    more = [names for names in (EXPERTS_BESIDE, LAYERS_OWN_INPUT) if names <= parts.keys()]
    _refuse(
        config, "", parts, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}.union(sandwich, *more)
    )
    _refuse(config, "self_attn.", dict(attention.named_children()), KNOWN_IN_ATTENTION)
    _refuse(config, "mlp.", mlp_parts, KNOWN_IN_EXPERTS if routed else KNOWN_IN_MLP)
    _refuse(config, "", own, set())
    values = config.to_dict()
    return BlockShape(
        activation=values.get("hidden_act") or values["hidden_activation"],
        mlp=_experts_shape(mlp_parts["gate"], mlp_parts) if routed else _mlp_shape(mlp_parts["down_proj"]),
        output_norms=bool(sandwich),
        scaled="layer_scalar" in dict(layer.named_buffers()),
        beside=_experts_shape(parts["router"], parts) if EXPERTS_BESIDE in more else None,
        own_input=parts["per_layer_input_gate"].out_features if LAYERS_OWN_INPUT in more else None,
    )


KNOWN_IN_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "v_norm"}
KNOWN_IN_MLP = {"gate_proj", "up_proj", "gate_up_proj", "down_proj", "act_fn", "activation_fn"}
KNOWN_IN_EXPERTS = {"gate", "experts", "shared_expert", "shared_expert_gate"}


def _refuse(config: Any, where: str, found: Iterable[str], known: set[str]) -> None:
    if unknown := sorted(set(found) - known):
        raise ValueError(
            f"The layer of a {config.model_type!r} language model has {', '.join(where + name for name in unknown)}, which policy_type='full' does "
            f"not imitate. {LIGHT}"
        )


def _mlp_shape(down: Any) -> MLPShape:
    return MLPShape(width=down.in_features, biased=down.bias is not None)


def _experts_shape(router_part: Any, parts: dict[str, Any]) -> ExpertsShape:
    count, _, width = parts["experts"].down_proj.shape
    router = vars(router_part)
    shared = parts.get("shared_expert")
    return ExpertsShape(
        count=count,
        chosen=router["top_k"] if "top_k" in router else router["config"].top_k_experts,
        width=width,
        normalised=router.get("norm_topk_prob", True),  # those that do not ask normalise
        shared_width=None if shared is None else shared.down_proj.in_features,
    )
