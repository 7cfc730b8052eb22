"""Read weights off a decoder layer of any kind: quantised, sharded, offloaded or with adapters."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.layer_kinds import GEMMA_NORMS, GLM_NORMS
from ..utils.hooks import Hook, attached
from .layer import DecoderLayer, Experts, ExpertsBeside, Heads, OwnInput, Reading


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Return a module in evaluation mode, each part's own mode restored afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def norm_weight(norm: Any) -> Tensor:
    """Return the factor `(size,)` that an RMS norm multiplies by, whether it stores that or what is added to 1.

    It is told from the norm of (1, ..., 1), which is the factor up to rounding, also where the parameter itself is offloaded.
    """
    ones = torch.ones(1, norm.weight.numel(), dtype=norm.weight.dtype)
    if norm.weight.is_meta:
        return norm(ones)[0]
    found = norm(ones.to(norm.weight.device))[0]
    return torch.where((found - norm.weight).abs() < 0.5, norm.weight, norm.weight.float() + 1)


def copy_norm(target: Any, source: Any) -> None:
    """Copy the weight of an RMS norm."""
    target.weight.copy_(norm_weight(source))


def copy_linear(target: Any, source: Any, rows: Tensor | None = None) -> None:
    """Copy weight and bias of `source`, a linear layer of any kind (quantised, offloaded, with an adapter).

    Plain layers are copied; of any other, the columns are read off its output for unit vectors, in chunks.

    Args:
        target: a plain linear layer.
        source: that has at least as many outputs.
        rows: int64, which outputs of `source` are those of `target`; None: all.
    """
    weight = source.weight
    plain = (
        type(source) is nn.Linear and type(weight.data) is Tensor and weight.is_floating_point() and not weight.is_meta
    )

    def chosen(values: Tensor) -> Tensor:
        return values if rows is None else values[rows.to(values.device)]

    if plain:
        target.weight.copy_(chosen(source.weight))
        bias = source.bias
    else:
        dtype = source.weight.dtype if source.weight.is_floating_point() else target.weight.dtype
        device = source.weight.device if not source.weight.is_meta else target.weight.device
        bias = source(torch.zeros(1, target.in_features, dtype=dtype, device=device))[0]
        for start in range(0, target.in_features, 1024):
            stop = min(start + 1024, target.in_features)
            units = torch.zeros(stop - start, target.in_features, dtype=dtype, device=device)
            units[:, start:stop].fill_diagonal_(1)
            target.weight[:, start:stop] = chosen((source(units) - bias).T)
    if target.bias is not None:
        target.bias.copy_(chosen(bias) if bias is not None else torch.zeros_like(target.bias))


class _Read(Exception):
    """The parameters of a module have been read."""


def computed_with(module: Any, *names: str) -> list[Tensor]:
    """Return parameters of a module as it computes with them.

    An adapter on a parameter itself (`target_parameters` of peft) wraps its module, and changes the parameter for the time of a call. So the module is
    called, and stopped before it computes.
    """
    inner, found = module, []
    while "base_layer" in dict(inner.named_children()):
        inner = inner.base_layer

    def read() -> list[Tensor]:
        return [getattr(inner, name).detach() for name in names]

    def note(*args: Any) -> None:
        found.extend(read())
        raise _Read

    if inner is module:
        return read()
    with suppress(_Read), attached(Hook(inner, pre=note)):
        module(torch.zeros(0))
    return found


def attention_of(layer: Any) -> Any:
    """Return the attention of a decoder layer.

    Raises:
        ValueError: a layer that does not attend, such as one of linear attention.
    """
    parts = dict(layer.named_children())
    if "self_attn" not in parts:
        raise ValueError(
            f"The decoder layer has {', '.join(sorted(parts))} and does not attend. Give the layer of index policy.shape.layer."
        )
    return parts["self_attn"]


def copy_layer(ours: DecoderLayer, layer: Any, language_model: Any = None) -> None:
    """Copy a whole decoder layer.

    Args:
        ours: the copy.
        layer: of the language model.
        language_model: the layer's, which makes the layer's own inputs; where layers have none, it is not needed.

    Raises:
        ValueError: a layer without the parts that `ours` has, or one with inputs of its own without its language model.
    """
    attention, parts = attention_of(layer), dict(layer.named_children())
    with evaluating(layer):  # an adapter's dropout would be read as part of its weight
        names = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "post_attention_layernorm"}
        if parts.keys() >= GLM_NORMS:
            names |= {"attention_output_norm": "post_self_attn_layernorm", "mlp_output_norm": "post_mlp_layernorm"}
        if parts.keys() >= GEMMA_NORMS:
            names |= {
                "post_attention_layernorm": "pre_feedforward_layernorm",
                "attention_output_norm": "post_attention_layernorm",
                "mlp_output_norm": "post_feedforward_layernorm",
            }
        for name, stock_name in names.items():
            copy_norm(ours.get_submodule(name), parts[stock_name])
        copy_keys_values(ours.self_attn, attention)
        _copy_queries(ours.self_attn, attention)
        copy_linear(ours.self_attn.o_proj, attention.o_proj)
        if isinstance(ours.mlp, Experts):
            (router,) = computed_with(layer.mlp.gate, "weight")
            _copy_experts(ours.mlp, layer.mlp.experts, router)
            ours.mlp.router.weight.copy_(router)
            if ours.mlp.shape.shared_width is not None:
                _copy_mlp(ours.mlp.shared_expert, layer.mlp.shared_expert)
                copy_linear(ours.mlp.shared_expert_gate, layer.mlp.shared_expert_gate)
        else:
            _copy_mlp(ours.mlp, layer.mlp)
        if ours.beside is not None:
            _copy_experts_beside(ours.beside, layer)
        if ours.own_input is not None:
            _copy_own_input(ours.own_input, layer, language_model)
        if ours.scaled:
            ours.output_scale.copy_(layer.layer_scalar)


def copy_reading(ours: Reading, layer: Any) -> None:
    """Copy the norm, keys and values of a decoder layer, and the mean of the queries that share a key."""
    attention = attention_of(layer)
    with evaluating(layer):
        copy_norm(ours.input_layernorm, layer.input_layernorm)
        copy_keys_values(ours, attention)
        copy_mean_queries(ours, attention)


def copy_keys_values(ours: Heads, attention: Any) -> None:
    """Copy what makes keys and values; where a model's values are its keys, both start from those."""
    parts = dict(attention.named_children())
    copy_linear(ours.k_proj, attention.k_proj)
    copy_linear(ours.v_proj, parts.get("v_proj", attention.k_proj))
    if "k_norm" in ours.shape.norms:
        copy_norm(ours.k_norm, attention.k_norm)


def copy_mean_queries(ours: Heads, attention: Any) -> None:
    """One query per key-value head, the mean of those that share it; they stand side by side."""
    shape, first = ours.shape, ours.q_proj.weight
    queries = nn.Linear(
        shape.hidden_size,
        shape.num_heads * shape.head_dim,
        bias=ours.q_proj.bias is not None,
        device=first.device,
        dtype=first.dtype,
    )
    copy_linear(queries, attention.q_proj, _query_rows(shape.num_heads, shape.head_dim)[0] if shape.gated else None)
    groups = (shape.num_key_value_heads, -1, shape.head_dim)
    ours.q_proj.weight.copy_(queries.weight.unflatten(0, groups).mean(1).flatten(0, 1))
    if ours.q_proj.bias is not None:
        ours.q_proj.bias.copy_(queries.bias.unflatten(0, groups).mean(1).flatten())
    if "q_norm" in shape.norms:
        copy_norm(ours.q_norm, attention.q_norm)


def _query_rows(heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Rows of queries and of gates in a projection to `heads * 2 * head_dim`, a head's query before its gate."""
    query, gate = torch.arange(heads * 2 * head_dim).view(heads, 2, head_dim).unbind(1)
    return query.flatten(), gate.flatten()


def _copy_queries(ours: Any, attention: Any) -> None:
    if ours.shape.gated:
        query, gate = _query_rows(ours.shape.num_heads, ours.shape.head_dim)
        copy_linear(ours.q_proj, attention.q_proj, query)
        copy_linear(ours.gate_proj, attention.q_proj, gate)
    else:
        copy_linear(ours.q_proj, attention.q_proj)
    if "q_norm" in ours.shape.norms:
        copy_norm(ours.q_norm, attention.q_norm)


def _copy_mlp(ours: Any, mlp: Any) -> None:
    parts = dict(mlp.named_children())
    if "gate_up_proj" in parts:
        gate, up = torch.arange(2 * ours.gate_proj.out_features).chunk(2)
        copy_linear(ours.gate_proj, parts["gate_up_proj"], gate)
        copy_linear(ours.up_proj, parts["gate_up_proj"], up)
        copy_linear(ours.down_proj, parts["down_proj"])
        return
    for name in ("gate_proj", "up_proj", "down_proj"):
        copy_linear(ours.get_submodule(name), parts[name])


def _copy_experts(ours: Experts, experts: Any, *beside: Tensor) -> None:
    """Copy the experts' weights, after a look whether these and those `beside` them can be read."""
    gate_up, down = computed_with(experts, "gate_up_proj", "down_proj")
    if any(weight.is_meta or not weight.is_floating_point() for weight in (*beside, gate_up, down)):
        raise ValueError(
            "The experts of the language model are offloaded or quantised, and cannot be read. Use policy_type='light', or load them as they are."
        )
    gate, up = gate_up.chunk(2, dim=1)
    ours.experts.gate_proj.copy_(gate)
    ours.experts.up_proj.copy_(up)
    ours.experts.down_proj.copy_(down)


def _copy_experts_beside(ours: ExpertsBeside, layer: Any) -> None:
    """Move the router's factors into its weight, and that of each expert into what it gives."""
    router = layer.router
    _copy_experts(ours, layer.experts)
    copy_linear(ours.router, router.proj)  # what it computes, adapters included
    ours.router.weight.mul_((router.scale * router.scalar_root_size).to(ours.router.weight.device))
    ours.experts.down_proj.mul_(router.per_expert_scale.to(ours.experts.down_proj.device)[:, None, None])
    copy_norm(ours.mlp_norm, layer.post_feedforward_layernorm_1)
    copy_norm(ours.input_norm, layer.pre_feedforward_layernorm_2)
    copy_norm(ours.output_norm, layer.post_feedforward_layernorm_2)


def _copy_own_input(ours: OwnInput, layer: Any, language_model: Any) -> None:
    """Copy what the language model makes for this layer of a video token's placeholder, looked up as padding, and of its embedding."""
    if language_model is None:
        raise ValueError(
            "The decoder layer has an input of its own of each token, which its language model makes. Call init_from_layer(layer, language_model)."
        )
    number, width = layer.layer_idx, len(ours.token)
    device = language_model.embed_tokens_per_layer.weight.device
    padding = torch.full((1, 1), language_model.config.pad_token_id, device="cpu" if device.type == "meta" else device)
    half = language_model.per_layer_input_scale
    ours.token.copy_(language_model.get_per_layer_inputs(padding, None)[0, 0, number] * half)
    rows, projection = torch.arange(number * width, (number + 1) * width), language_model.per_layer_model_projection
    with evaluating(projection):  # which is the language model's, not the layer's
        copy_linear(ours.proj, projection, rows)
    ours.proj.weight.mul_(language_model.per_layer_model_projection_scale)
    copy_norm(ours.norm, language_model.per_layer_projection_norm)
    ours.norm.weight.mul_(half)
    copy_linear(ours.gate_proj, layer.per_layer_input_gate)
    copy_linear(ours.output_proj, layer.per_layer_projection)
    copy_norm(ours.output_norm, layer.post_per_layer_input_norm)
