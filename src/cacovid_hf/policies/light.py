"""The light policy (ours): what the full one learns to look at, at about a fiftieth of its cost on a 7B model.

A video token reads the question through a part of the language model's layer 0: its own keys and values, and one query a key-value head, the mean of the
queries that share it. What the token holds (its value) and what it read are compared in that small space, `num_key_value_heads * head_dim` wide; a small
trunk serves both heads. There is no output projection, no MLP and no attention between video tokens.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prompt import PromptLayout
from ..utils.tensors import rotate
from .base import Context, Policy, PolicyOutput, RMSNorm, attend, head_size, logits, split_heads
from .from_layer import copy_linear, evaluating, norm_weight

if TYPE_CHECKING:
    pass


class Reading(nn.Module):
    """The part of a decoder layer by which a video token reads the question; `W = num_key_value_heads * head_dim`."""

    def __init__(self, config):
        super().__init__()
        size, width = config.hidden_size, config.num_key_value_heads * head_size(config)
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.q_proj = nn.Linear(size, width)
        self.k_proj = nn.Linear(size, width)
        self.v_proj = nn.Linear(size, width)


class LightPolicy(Policy):
    """Scores video tokens by what they hold and what of the question speaks to it.

    Args:
        config: the text config of the backbone.
        attention: `"question"`; the light policy has no other.
    """

    policy_type = "light"
    tokens_per_chunk = 16384

    def __init__(self, config, attention: str = "question"):
        super().__init__(config, attention)
        width = config.num_key_value_heads * self.head_dim
        self.layer = Reading(config)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.trunk = nn.Linear(3 * width, width)
        self.token_head = nn.Sequential(nn.Linear(width, width // 4), nn.SiLU(), nn.Linear(width // 4, 2))
        self.frame_head = nn.Sequential(nn.Linear(2 * width, width // 4), nn.SiLU(), nn.Linear(width // 4, 2))

    def _context(self, embeds: Tensor, positions: Tensor, layout: PromptLayout, row: int) -> Context:
        """Keys and values of the row's text."""
        places = self._text_places(layout, row)
        states = self.layer.input_layernorm(embeds[places])
        key = rotate(split_heads(self.layer.k_proj(states), self.head_dim), *self._rope(positions[..., places]))
        return key, split_heads(self.layer.v_proj(states), self.head_dim)

    def _states(self, context: Context, embeds: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """The trunk's output `(n, W)`."""
        states = self.layer.input_layernorm(embeds[places])
        query = rotate(split_heads(self.layer.q_proj(states), self.head_dim), *self._rope(positions[..., places]))
        key, value = context
        held, read = self.norm(self.layer.v_proj(states)), self.norm(attend(query, key, value))
        return F.silu(self.trunk(torch.cat((held, read, held * read), dim=-1)))

    def _score(self, states: Tensor) -> PolicyOutput:
        """The frame head reads their mean and their maximum over a frame's tokens."""
        frames = torch.cat((states.mean(dim=1), states.amax(dim=1)), dim=-1)
        return PolicyOutput(logits(self.token_head, states), logits(self.frame_head, frames))

    @torch.no_grad()
    def init_from_layer(self, layer: Any) -> None:
        """Start from the norm, keys and values of a decoder layer, and the mean of the queries that share a key.

        The mean query scores a key by the mean of what the queries score it, exactly: the score is linear in the query.
        """
        attention = layer.self_attn
        with evaluating(layer):
            self.layer.input_layernorm.weight.copy_(norm_weight(layer.input_layernorm))
            copy_linear(self.layer.k_proj, attention.k_proj)
            copy_linear(self.layer.v_proj, attention.v_proj)
            queries = nn.Linear(
                self.config.hidden_size,
                self.config.num_attention_heads * self.head_dim,
                device=self.device,
                dtype=self.dtype,
            )
            copy_linear(queries, attention.q_proj)
        groups = (self.config.num_key_value_heads, -1, self.head_dim)  # query heads of a group stand side by side
        self.layer.q_proj.weight.copy_(queries.weight.unflatten(0, groups).mean(1).flatten(0, 1))
        self.layer.q_proj.bias.copy_(queries.bias.unflatten(0, groups).mean(1).flatten())
