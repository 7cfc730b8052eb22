"""The contribution policy: prompt embeddings in, a keep score for every video token and every frame out.

`Policy` is what every policy is: rows of a batch without their padding, so that attention needs no mask, and logits in float32. The full one is here: one
decoder layer of the backbone's language-model type, initialised from its layer 0, a norm and two small heads (CaCoVID, arXiv 2602.01649, section on
the policy network). Only what the heads read is computed: queries, MLP and norms run on the video tokens alone. The light one is in `light_policy.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .policy_settings import check_policy
from .prompt import PromptLayout, VideoSpan, send

Context = tuple[Tensor, ...]


@dataclass(frozen=True)
class PolicyOutput:
    """What the policy says of one video.

    Attributes:
        token_logits: float32 `(T, P, 2)`, (drop, keep).
        frame_logits: float32 `(T, 2)`, (drop, keep).
    """

    token_logits: Tensor
    frame_logits: Tensor

    @property
    def token_scores(self) -> Tensor:
        """Float32 `(T, P)`, keep minus drop: larger = keep."""
        return self.token_logits[..., 1] - self.token_logits[..., 0]

    @property
    def frame_scores(self) -> Tensor:
        """Float32 `(T,)`, keep minus drop: larger = more of the budget."""
        return self.frame_logits[..., 1] - self.frame_logits[..., 0]


def head_size(config) -> int:
    """Width of one attention head of a language model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class RMSNorm(nn.Module):
    """Root-mean-square norm with the mean taken in float32, as in Qwen2."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """`(..., size)` to the same shape and dtype; one kernel that rounds once, after the weight (Qwen2 rounds before it too)."""
        return F.rms_norm(states, states.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention of `n` queries over `m` keys of one row, rotary positions given."""

    def __init__(self, config):
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.head_dim = head_size(config)
        self.groups = heads // config.num_key_value_heads
        # Qwen2 has biases on the three input projections and says so nowhere in its config.
        self.q_proj = nn.Linear(size, heads * self.head_dim)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(heads * self.head_dim, size, bias=False)

    def read(self, states: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`(m, D)` normed states to keys and values `(H, m, head_dim)`, one a query head."""
        key = rotate(split_heads(self.k_proj(states), self.head_dim), *rope)
        value = split_heads(self.v_proj(states), self.head_dim)
        return key.repeat_interleave(self.groups, dim=0), value.repeat_interleave(self.groups, dim=0)

    def forward(
        self, states: Tensor, rope: tuple[Tensor, Tensor], key: Tensor, value: Tensor, is_causal: bool = False
    ) -> Tensor:
        """`(n, D)` normed states over keys and values to `(n, H * head_dim)`: the heads side by side, before the output projection."""
        return attend(rotate(split_heads(self.q_proj(states), self.head_dim), *rope), key, value, is_causal)


class MLP(nn.Module):
    """Gated MLP (SwiGLU in Qwen2)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """`(n, D)` to `(n, D)`."""
        return self.down_proj(self.activation(self.gate_proj(states)) * self.up_proj(states))


class DecoderLayer(nn.Module):
    """A Qwen2 decoder layer under its own key names, computed for chosen queries only."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def finish(self, states: Tensor, mixed: Tensor) -> Tensor:
        """Output projection, residuals and MLP for `(n, D)` input states and their attention result."""
        states = states + self.self_attn.o_proj(mixed)
        return states + self.mlp(self.post_attention_layernorm(states))


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """`(n, H * head_dim)` to `(H, n, head_dim)`."""
    return states.unflatten(-1, (-1, head_dim)).transpose(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Attention `(H, n, head_dim)` over `(H, m, head_dim)`, without a mask, to `(n, H * head_dim)`."""
    mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=is_causal)[0]
    return mixed.transpose(0, 1).flatten(1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `(H, n, head_dim)` by `(n, head_dim)`: halves of the head rotated against each other."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def scoring_head(size: int) -> nn.Sequential:
    """`size -> size/2 -> size/4 -> size/8 -> size/16 -> 2`, linear with bias, SiLU between (published shape)."""
    widths = [max(1, size // d) for d in (1, 2, 4, 8, 16)] + [2]
    layers: list[nn.Module] = []
    for narrow, wide in zip(widths[1:], widths[:-1], strict=True):
        layers += [nn.Linear(wide, narrow), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def logits(head: nn.Sequential, states: Tensor) -> Tensor:
    """What a head says of `(..., S)` states, float32: its last layer is computed so, lest scores tie in half precision."""
    last: Any = head[-1]
    hidden = head[:-1](states).float()
    with full_precision(states.device):
        return F.linear(hidden, last.weight.float(), last.bias.float())


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off on a device, so that matrix products of float32 are float32."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Policy(nn.Module, ABC):
    """Scores every video token and every frame of a prompt by its contribution to the answer.

    Args:
        config: the text config of the backbone (Qwen2 or Qwen2.5-VL): sizes, activation, rotary parameters.
        attention: what a video token may attend to.

    Attributes:
        tokens_per_chunk: so many video tokens are scored at a time where no gradients are wanted: enough to keep a device busy, few enough
            that the intermediate results of a long video stay small.
    """

    policy_type: ClassVar[str]
    tokens_per_chunk: ClassVar[int]
    norm: "RMSNorm"

    def __init__(self, config, attention: str):
        super().__init__()
        check_policy(self.policy_type, attention)
        self.config = config
        self.attention = attention
        self.head_dim = head_size(config)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.norm.weight.device

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, layout: PromptLayout) -> list[PolicyOutput]:
        """Score the videos of a batch of prompts.

        Args:
            inputs_embeds: `(B, L, D)`, the embedded prompt, text and video.
            position_ids: `(B, L)`, or `(R, B, L)` with the rows of M-RoPE last (a leading text row is ignored).
            layout: what is where in the `B` prompts.

        Returns:
            One `PolicyOutput` a video, in the order of `layout.videos`.
        """
        if inputs_embeds.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"The prompt has hidden size {inputs_embeds.shape[-1]}, the policy {self.config.hidden_size}: use the policy with the "
                "backbone that it was made for."
            )
        if self.device.type == "meta" and inputs_embeds.device.type != "meta":
            raise ValueError(
                "The policy's weights are not in memory (offloaded with the whole model): offload the backbone alone, or load with device_map."
            )
        inputs_embeds = inputs_embeds.to(self.device, self.dtype)
        position_ids = position_ids.to(self.device)
        contexts: dict[int, Context] = {}
        outputs = []
        for span in layout.videos:
            embeds, positions = inputs_embeds[span.row], position_ids[..., span.row, :]
            if span.row not in contexts:
                contexts[span.row] = self._context(embeds, positions, layout, span.row)
            parts = []
            for places in self._chunks(span):
                states = self._states(contexts[span.row], embeds, positions, places)
                parts.append(self._score(states.unflatten(0, (-1, span.tokens_per_frame))))
            if len(parts) > 1:
                tokens, frames = torch.cat([p.token_logits for p in parts]), torch.cat([p.frame_logits for p in parts])
                parts = [PolicyOutput(tokens, frames)]
            outputs += parts
        return outputs

    @abstractmethod
    def _context(self, embeds: Tensor, positions: Tensor, layout: PromptLayout, row: int) -> Context:
        """What video tokens of a row read, from its `(L, D)` embeddings."""

    @abstractmethod
    def _states(self, context: Context, embeds: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """States `(n, S)` of the video tokens at `places` `(n,)` of a row, from its `(L, D)` embeddings."""

    @abstractmethod
    def _score(self, states: Tensor) -> PolicyOutput:
        """`(T, P, S)` states of frames of a video to their logits."""

    @abstractmethod
    def init_from_layer(self, layer: Any) -> None:
        """Start from a decoder layer of the language model (published: the layer 0), in the policy's dtype."""

    def _chunks(self, span: VideoSpan) -> tuple[Tensor, ...]:
        """Places of a video's tokens, whole frames at a time: all of them where gradients are wanted, else few enough to bound the memory."""
        frames = span.num_frames if torch.is_grad_enabled() else max(1, self.tokens_per_chunk // span.tokens_per_frame)
        return tuple(send(places, self.device) for places in span.positions.split(frames * span.tokens_per_frame))

    def _text_places(self, layout: PromptLayout, row: int) -> Tensor:
        places = layout.text_places[row]
        if len(places) == 0:
            raise ValueError(
                f"Row {row} of the prompt has no text, and a policy with attention='question' reads nothing else: add the question."
            )
        return send(places, self.device)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`(n,)` or `(R, n)` positions to cos and sin `(n, head_dim)`, the language model's own frequencies."""
        parameters = self.config.rope_parameters
        scaling = 1.0
        if parameters.get("rope_type", "default") in ("default", "mrope"):
            exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device) / self.head_dim
            frequencies = 1.0 / parameters["rope_theta"] ** exponents
        else:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](self.config, positions.device)
        if positions.ndim == 2:
            sections = parameters.get("mrope_section", [16, 24, 24])
            rows = positions[-len(sections) :]
            # (n, head_dim / 2): each frequency turns with its own axis.
            positions = torch.cat(
                [row[:, None].expand(-1, size) for row, size in zip(rows, sections, strict=True)], dim=1
            )
        else:
            positions = positions[:, None]
        angles = positions.float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).to(self.dtype), (angles.sin() * scaling).to(self.dtype)


class ContributionPolicy(Policy):
    """The published policy, full size.

    Args:
        config: the text config of the backbone (Qwen2 or Qwen2.5-VL): sizes, activation, rotary parameters.
        attention: what a video token may attend to in the policy's layer: `"causal"`, everything before it (what the published code runs);
            `"bidirectional"`, the whole prompt (the paper's text); `"question"`, the text of the prompt alone (ours: `N x M` instead of
            `N x N`, and question-aware within minutes of training).
    """

    policy_type = "full"
    tokens_per_chunk = 4096  # its MLP is several times as wide as the prompt

    def __init__(self, config, attention: str = "question"):
        super().__init__(config, attention)
        self.layer = DecoderLayer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.token_head = scoring_head(config.hidden_size)
        self.frame_head = scoring_head(config.hidden_size)

    def _context(self, embeds: Tensor, positions: Tensor, layout: PromptLayout, row: int) -> Context:
        """Keys and values; of causal attention its result, since its queries are the keys then and no mask is needed."""
        layer, question = self.layer, self.attention == "question"
        places = self._text_places(layout, row) if question else send(layout.valid_places[row], self.device)
        states, rope = layer.input_layernorm(embeds[places]), self._rope(positions[..., places])
        key, value = layer.self_attn.read(states, rope)
        if self.attention == "causal":
            mixed = layer.self_attn(states, rope, key, value, is_causal=True)
            return (mixed.new_zeros(len(embeds), mixed.shape[-1]).index_copy(0, places, mixed),)
        return key, value

    def _states(self, context: Context, embeds: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """The layer's output."""
        layer, states = self.layer, embeds[places]
        if self.attention == "causal":
            mixed = context[0][places]
        else:
            mixed = layer.self_attn(layer.input_layernorm(states), self._rope(positions[..., places]), *context)
        return layer.finish(states, mixed)

    def _score(self, states: Tensor) -> PolicyOutput:
        """The frame head reads the mean over a frame's tokens."""
        return PolicyOutput(
            token_logits=logits(self.token_head, self.norm(states)),
            frame_logits=logits(self.frame_head, self.norm(states.mean(dim=1))),
        )

    @torch.no_grad()
    def init_from_layer(self, layer: Any) -> None:
        """Copy a decoder layer of the language model into the policy's (published: the layer 0), in the policy's dtype.

        Works for quantised, sharded, offloaded and adapted layers: a linear layer that is not plain is read through what it
        computes.
        """
        with evaluating(layer):  # an adapter's dropout would be read as part of its weight
            self.layer.input_layernorm.weight.copy_(norm_weight(layer.input_layernorm))
            self.layer.post_attention_layernorm.weight.copy_(norm_weight(layer.post_attention_layernorm))
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                copy_linear(self.layer.self_attn.get_submodule(name), layer.self_attn.get_submodule(name))
            for name in ("gate_proj", "up_proj", "down_proj"):
                copy_linear(self.layer.mlp.get_submodule(name), layer.mlp.get_submodule(name))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, each part's own mode restored afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def norm_weight(norm: Any) -> Tensor:
    """Weight of an RMS norm, also where the parameter itself is offloaded: the norm of (1, ..., 1) times the weight is the weight."""
    if not norm.weight.is_meta:
        return norm.weight
    ones = torch.ones(1, norm.weight.numel(), dtype=norm.weight.dtype)
    return norm(ones)[0]


def copy_linear(target: Any, source: Any) -> None:
    """Copy weight and bias of `source`, a linear layer of any kind (quantised, offloaded, with an adapter).

    Plain layers are copied; of any other, the columns are read off its output for unit vectors, in chunks.
    """
    weight = source.weight
    plain = (
        type(source) is nn.Linear and type(weight.data) is Tensor and weight.is_floating_point() and not weight.is_meta
    )
    if plain:
        target.weight.copy_(source.weight)
        bias = source.bias
    else:
        dtype = source.weight.dtype if source.weight.is_floating_point() else target.weight.dtype
        device = source.weight.device if not source.weight.is_meta else target.weight.device
        bias = source(torch.zeros(1, target.in_features, dtype=dtype, device=device))[0]
        for start in range(0, target.in_features, 1024):
            stop = min(start + 1024, target.in_features)
            units = torch.zeros(stop - start, target.in_features, dtype=dtype, device=device)
            units[:, start:stop].fill_diagonal_(1)
            target.weight[:, start:stop] = (source(units) - bias).T
    if target.bias is not None:
        target.bias.copy_(bias if bias is not None else torch.zeros_like(target.bias))
