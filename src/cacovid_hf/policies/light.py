"""The light policy (ours): what the full one learns to look at, at about a fiftieth of its cost on a 7B model.

A video token reads the question through a part of the language model's layer 0, or of its first layer that attends: its own keys and values, and one
query per key-value head, the mean of the queries that share it. What the token holds (its value) and what it read are compared in that small space,
`num_key_value_heads * head_dim` wide; a small trunk serves both heads. There is no output projection, no gate, no MLP and no attention between video tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prompt import PromptLayout
from .base import Context, Policy
from .from_layer import copy_reading
from .layer import Reading, RMSNorm, Rope, attend, turned_at
from .rotary import turning_of
from .shape import attention_shape, stock_layer


class LightPolicy(Policy):
    """Scores video tokens by what they hold and what of the question speaks to it.

    Args:
        config: the text config of the backbone.
        attention: `"question"`; the light policy has no other.
    """

    policy_type = "light"
    tokens_per_chunk = 16384

    def __init__(self, config, attention: str = "question"):
        shape = attention_shape(config, stock_layer(config))
        super().__init__(config, attention, shape)
        width = shape.num_key_value_heads * shape.head_dim
        self.layer = Reading(shape, turning_of(config.model_type).pairs)
        self.norm = RMSNorm(width, shape.eps)
        self.trunk = nn.Linear(3 * width, width)
        self.token_head = nn.Sequential(nn.Linear(width, width // 4), nn.SiLU(), nn.Linear(width // 4, 2))
        self.frame_head = nn.Sequential(nn.Linear(2 * width, width // 4), nn.SiLU(), nn.Linear(width // 4, 2))

    def _context(self, embeds: Tensor, rope: Rope, layout: PromptLayout, row: int) -> Context:
        """Keys and values of the row's text."""
        places = self._text_places(layout, row)
        states = self.layer.input_layernorm(embeds[places])
        return self.layer.keys(states, turned_at(rope, places)), self.layer.values(states)

    def _states(self, context: Context, embeds: Tensor, rope: Rope, places: Tensor, former: Tensor) -> Tensor:
        """Return the trunk's output `(n, W)`."""
        states = self.layer.input_layernorm(embeds[places])
        query = self.layer.queries(states, turned_at(rope, places))
        key, value = context
        held = self.norm(self.layer.values(states).transpose(0, 1).flatten(1))
        read = self.norm(attend(query, key, value, scale=self.shape.scale))
        return F.silu(self.trunk(torch.cat((held, read, held * read), dim=-1)))

    def _readings(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the frame head reads: their mean and their maximum over a frame's tokens."""
        return states, torch.cat((states.mean(dim=1), states.amax(dim=1)), dim=-1)

    @torch.no_grad()
    def init_from_layer(self, layer: Any, language_model: Any = None) -> None:
        """Start from the norm, keys and values of a decoder layer, and the mean of the queries that share a key.

        The layer is 0, or where that is linear attention the first one that attends, `shape.layer`.
        Without a norm of the queries, the mean query scores a key by the mean of what the queries score it, exactly: the score is
        linear in the query. With one (Qwen3, Gemma), the mean is normed itself: it points where the queries point together, and is
        as long as one of them.
        """
        copy_reading(self.layer, layer)
