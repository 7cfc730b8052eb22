"""A decoder layer of any known language model, computed for chosen queries only.

Its parts have the same names whatever the stock layer is called inside, because they are the names of a checkpoint:

| name | part | stock layers that have it otherwise |
|---|---|---|
| `self_attn.q_proj`, `.k_proj`, `.v_proj`, `.o_proj` | projections | |
| `self_attn.gate_proj` | gate of each head's result | Qwen3.5: the second half of each head in `q_proj` |
| `self_attn.q_norm`, `.k_norm` | norms over a head | |
| `input_layernorm` | norm before the attention | |
| `post_attention_layernorm` | norm before the MLP | Gemma: `pre_feedforward_layernorm` |
| `attention_output_norm` | norm of what attention adds | GLM: `post_self_attn_layernorm`; Gemma: `post_attention_layernorm` |
| `mlp_output_norm` | norm of what the MLP adds | GLM: `post_mlp_layernorm`; Gemma: `post_feedforward_layernorm` |
| `output_scale` | factor of the layer's output | Gemma 4: `layer_scalar` |
| `mlp.gate_proj`, `.up_proj`, `.down_proj` | gated MLP | GLM: `gate_up_proj` |
| `mlp.router`, `mlp.experts.*`, `mlp.shared_expert.*`, `mlp.shared_expert_gate` | experts | `mlp.gate`, `mlp.experts.gate_up_proj` |
| `beside.router`, `beside.experts.*` | experts beside the MLP | Gemma 4: `router.proj` with its scales, `experts.*` |
| `beside.mlp_norm`, `.input_norm`, `.output_norm` | norms behind the MLP, before and behind the experts | Gemma 4: `post_feedforward_layernorm_1`, `pre_`, `post_feedforward_layernorm_2` |
| `own_input.token`, `.proj`, `.norm` | the layer's own input of a token, of a video's placeholder and of the token's embedding | Gemma 4: `embed_tokens_per_layer`, `per_layer_model_projection`, `per_layer_projection_norm` of the language model |
| `own_input.gate_proj`, `.output_proj`, `.output_norm` | what it adds to a state | Gemma 4: `per_layer_input_gate`, `per_layer_projection`, `post_per_layer_input_norm` |

The weight of a norm is the factor itself, also where stock code stores what is added to 1. Constant factors are part of the weights that they follow.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from ..utils.tensors import rotate
from .shape import AttentionShape, BlockShape, ExpertsShape

Rope = tuple[Tensor, Tensor]


def turned_at(rope: Rope, places: Tensor) -> Rope:
    """Return the cos and sin of some places `(n,)` of a row."""
    return rope[0][places], rope[1][places]


class RMSNorm(nn.Module):
    """Root-mean-square norm with the mean taken in float32, as in Qwen2; without a weight if `weighted` is false."""

    weight: nn.Parameter

    def __init__(self, size: int, eps: float, weighted: bool = True):
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(size)) if weighted else None)
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """`(..., size)` to the same shape and dtype; one kernel that rounds once, after the weight (Qwen2 rounds before it too)."""
        return F.rms_norm(states, states.shape[-1:], self.weight, self.eps)


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """`(n, H * head_dim)` to `(H, n, head_dim)`."""
    return states.unflatten(-1, (-1, head_dim)).transpose(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None) -> Tensor:
    """Attention `(H, n, head_dim)` over `(H, m, head_dim)`, without a mask, to `(n, H * head_dim)`; scale None: `head_dim ** -0.5`."""
    mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=is_causal, scale=scale)[0]
    return mixed.transpose(0, 1).flatten(1)


class Heads(nn.Module):
    """Projections to queries, keys and values, with the norms and the turning of their heads."""

    shape: AttentionShape
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    v_norm: nn.Module

    def add_projections(self, shape: AttentionShape, num_queries: int, pairs: bool) -> None:
        """Register the parts, for so many query heads; `pairs` as in `Turning`."""
        self.shape, self.pairs = shape, pairs
        size, dim = shape.hidden_size, shape.head_dim
        for name, heads in (("q", num_queries), ("k", shape.num_key_value_heads), ("v", shape.num_key_value_heads)):
            self.add_module(f"{name}_proj", nn.Linear(size, heads * dim, bias=f"{name}_proj" in shape.biases))
        for name in ("q_norm", "k_norm"):
            self.add_module(name, RMSNorm(dim, shape.eps) if name in shape.norms else nn.Identity())
        self.v_norm = RMSNorm(dim, shape.eps, weighted=False) if "v_norm" in shape.norms else nn.Identity()

    def queries(self, states: Tensor, rope: Rope) -> Tensor:
        """`(n, D)` normed states to `(H, n, head_dim)`."""
        return rotate(self.q_norm(split_heads(self.q_proj(states), self.shape.head_dim)), *rope, pairs=self.pairs)

    def keys(self, states: Tensor, rope: Rope) -> Tensor:
        """`(m, D)` normed states to `(H, m, head_dim)`, `H` key-value heads."""
        return rotate(self.k_norm(split_heads(self.k_proj(states), self.shape.head_dim)), *rope, pairs=self.pairs)

    def values(self, states: Tensor) -> Tensor:
        """`(m, D)` normed states to `(H, m, head_dim)`, `H` key-value heads."""
        return self.v_norm(split_heads(self.v_proj(states), self.shape.head_dim))


class Reading(Heads):
    """The part of a decoder layer by which a video token reads the question: as many queries as keys."""

    def __init__(self, shape: AttentionShape, pairs: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.eps)
        self.add_projections(shape, shape.num_key_value_heads, pairs)


class Attention(Heads):
    """Grouped-query attention of `n` queries over `m` keys of one row, rotary positions given."""

    def __init__(self, shape: AttentionShape, pairs: bool):
        super().__init__()
        self.add_projections(shape, shape.num_heads, pairs)
        self.groups = shape.num_heads // shape.num_key_value_heads
        width = shape.num_heads * shape.head_dim
        self.o_proj = nn.Linear(width, shape.hidden_size, bias="o_proj" in shape.biases)
        if shape.gated:
            self.gate_proj = nn.Linear(shape.hidden_size, width, bias="q_proj" in shape.biases)

    def read(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """`(m, D)` normed states to keys and values `(H, m, head_dim)`, one per query head."""
        key, value = self.keys(states, rope), self.values(states)
        return key.repeat_interleave(self.groups, dim=0), value.repeat_interleave(self.groups, dim=0)

    def forward(self, states: Tensor, rope: Rope, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
        """`(n, D)` normed states over keys and values to `(n, H * head_dim)`: the heads side by side, before the output projection."""
        mixed = attend(self.queries(states, rope), key, value, is_causal, self.shape.scale)
        return mixed * self.gate_proj(states).sigmoid() if self.shape.gated else mixed


class MLP(nn.Module):
    """Gated MLP (SwiGLU in Qwen2)."""

    def __init__(self, size: int, width: int, activation: str, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(size, width, bias=bias)
        self.up_proj = nn.Linear(size, width, bias=bias)
        self.down_proj = nn.Linear(width, size, bias=bias)
        self.activation = ACT2FN[activation]

    def forward(self, states: Tensor) -> Tensor:
        """`(n, D)` to `(n, D)`."""
        return self.down_proj(self.activation(self.gate_proj(states)) * self.up_proj(states))


class ExpertWeights(nn.Module):
    """The weights of gated MLPs, `(E, I, D)` and `(E, D, I)`."""

    gate_proj: nn.Parameter
    up_proj: nn.Parameter
    down_proj: nn.Parameter

    def __init__(self, count: int, size: int, width: int):
        super().__init__()
        for name, shape in (("gate_proj", (width, size)), ("up_proj", (width, size)), ("down_proj", (size, width))):
            # The range of `nn.Linear`.
            weight = torch.empty(count, *shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5)
            self.register_parameter(name, nn.Parameter(weight))


class Experts(nn.Module):
    """MLPs of which a router chooses a few for each token, and one for all tokens where the model has it."""

    def __init__(self, size: int, shape: ExpertsShape, activation: str):
        super().__init__()
        self.shape = shape
        self.router = nn.Linear(size, shape.count, bias=False)
        self.experts = ExpertWeights(shape.count, size, shape.width)
        self.activation = ACT2FN[activation]
        if shape.shared_width is not None:
            self.shared_expert = MLP(size, shape.shared_width, activation)
            self.shared_expert_gate = nn.Linear(size, 1, bias=False)

    def forward(self, states: Tensor, judged: Tensor | None = None) -> Tensor:
        """`(n, D)` to `(n, D)`; without waiting for the device. `torch.compile` takes it in half precision alone.

        Args:
            states: what experts read.
            judged: `(n, D)`, what the router reads; None: the same.
        """
        judged = states if judged is None else judged
        weights, chosen = self.router(judged).softmax(dim=-1, dtype=torch.float32).topk(self.shape.chosen, dim=-1)
        if self.shape.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        experts = self.experts
        by_expert, order = chosen.flatten().sort(stable=True)
        # Where the tokens of each expert end, counted without reading from the device.
        ends = torch.searchsorted(by_expert, torch.arange(self.shape.count, device=states.device), right=True)
        served, ends = states[order // self.shape.chosen].to(experts.down_proj.dtype), ends.to(torch.int32)
        gate = self.activation(F.grouped_mm(served, experts.gate_proj.transpose(1, 2), offs=ends))
        up = F.grouped_mm(served, experts.up_proj.transpose(1, 2), offs=ends)
        given = F.grouped_mm(gate * up, experts.down_proj.transpose(1, 2), offs=ends)
        # Back in the order of tokens, so that the sum is taken in the same order every time.
        given = torch.empty_like(given).index_copy(0, order, given).unflatten(0, chosen.shape)
        mixed = (given * weights.to(given.dtype)[..., None]).sum(dim=1)
        if self.shape.shared_width is None:
            return mixed
        return mixed + self.shared_expert_gate(states).sigmoid() * self.shared_expert(states)


class ExpertsBeside(Experts):
    """Experts that add to what an MLP gives, each with norms of its own."""

    def __init__(self, size: int, shape: ExpertsShape, activation: str, eps: float):
        super().__init__(size, shape, activation)
        self.eps = eps
        self.mlp_norm, self.input_norm, self.output_norm = (RMSNorm(size, eps) for _ in range(3))

    def added(self, given: Tensor, states: Tensor) -> Tensor:
        """Return what both give together, `(n, D)`, from what the MLP gives and the states before its norm."""
        judged = F.rms_norm(states, states.shape[-1:], None, self.eps)
        return self.mlp_norm(given) + self.output_norm(self(self.input_norm(states), judged))


class OwnInput(nn.Module):
    """An input that a layer has of each video token beside its state, and what it adds to that."""

    def __init__(self, size: int, width: int, activation: str, eps: float):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(size, width, bias=False)
        self.norm = RMSNorm(width, eps)
        self.gate_proj = nn.Linear(size, width, bias=False)
        self.output_proj = nn.Linear(width, size, bias=False)
        self.output_norm = RMSNorm(size, eps)
        self.activation = ACT2FN[activation]

    def forward(self, states: Tensor, embeds: Tensor) -> Tensor:
        """`(n, D)` states and embeddings to the `(n, D)` that is added to the states."""
        own = self.norm(self.proj(embeds)) + self.token
        return self.output_norm(self.output_proj(self.activation(self.gate_proj(states)) * own))


class DecoderLayer(nn.Module):
    """One layer; the names of its parts are in the text above."""

    attention_output_norm: nn.Module
    mlp_output_norm: nn.Module
    output_scale: Tensor

    def __init__(self, attention: AttentionShape, block: BlockShape, pairs: bool):
        super().__init__()
        size, eps = attention.hidden_size, attention.eps
        self.self_attn = Attention(attention, pairs)
        self.mlp: nn.Module
        if isinstance(block.mlp, ExpertsShape):
            self.mlp = Experts(size, block.mlp, block.activation)
        else:
            self.mlp = MLP(size, block.mlp.width, block.activation, block.mlp.biased)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        for name in ("attention_output_norm", "mlp_output_norm"):
            self.add_module(name, RMSNorm(size, eps) if block.output_norms else nn.Identity())
        self.beside = ExpertsBeside(size, block.beside, block.activation, eps) if block.beside else None
        self.own_input = OwnInput(size, block.own_input, block.activation, eps) if block.own_input else None
        self.scaled = block.scaled
        if block.scaled:
            self.register_buffer("output_scale", torch.ones(1))

    def finish(self, states: Tensor, mixed: Tensor) -> Tensor:
        """Output projection, residuals and MLP for `(n, D)` input states and their attention result."""
        embeds, states = states, states + self.attention_output_norm(self.self_attn.o_proj(mixed))
        given = self.mlp(self.post_attention_layernorm(states))
        if self.beside is not None:
            given = self.beside.added(given, states)
        states = states + self.mlp_output_norm(given)
        if self.own_input is not None:
            states = states + self.own_input(states, embeds)
        return states * self.output_scale if self.scaled else states
