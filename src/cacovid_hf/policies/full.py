"""The published policy: one decoder layer of the language model and two heads (CaCoVID, arXiv 2602.01649, section on the policy network)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..prompt import PromptLayout
from ..utils.tensors import rotate, to_device_async
from .base import Context, Policy, PolicyOutput, RMSNorm, attend, head_size, logits, split_heads
from .from_layer import copy_linear, evaluating, norm_weight


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


def scoring_head(size: int) -> nn.Sequential:
    """`size -> size/2 -> size/4 -> size/8 -> size/16 -> 2`, linear with bias, SiLU between (published shape)."""
    widths = [max(1, size // d) for d in (1, 2, 4, 8, 16)] + [2]
    layers: list[nn.Module] = []
    for narrow, wide in zip(widths[1:], widths[:-1], strict=True):
        layers += [nn.Linear(wide, narrow), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


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
        places = self._text_places(layout, row) if question else to_device_async(layout.valid_places[row], self.device)
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
