"""The residual policy, after SCORE (arXiv 2603.26365): a video token is judged by what it holds and by what is new in it since the frame before.

The paper's equations are not known to us. From its abstract: a light network in front of the language model, whose state is the visual tokens and their inter-frame
residuals. The rest is derived by us: `s = [LN(x); LN(dx); |dx| / |x|; cos(x, x')]`, with `dx = x - x'` and `x'` the token at the same place of the frame before, then
`Linear(2D + 2 -> 256), GELU`, and a linear layer. In the first frame everything is new: `dx = x`, with a cosine of 0.

Departures, ours: two logits (drop, keep) in place of one, a frame head, and the question (`attention="question"`). The paper's abstract names no question, and
`attention="none"` reads none.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prompt import PromptLayout
from ..utils.operations import RESIDUAL_WIDTH
from .base import Context, Policy
from .from_layer import copy_reading
from .layer import Reading, RMSNorm, Rope, attend, turned_at
from .rotary import turning_of
from .shape import attention_shape, stock_layer

_SMALLEST = 1e-6


def change(tokens: Tensor, former: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is new in tokens, and how much of them that is.

    Args:
        tokens: `(n, D)`.
        former: `(n, D)`, those at the same places of the frame before.
        is_first: bool `(n,)`, whether there is no frame before, so that all is new.

    Returns:
        The residual `(n, D)`, and `(n, 2)` in float32: its length relative to the token's, and the cosine of token and former token. Larger and smaller = newer.
    """
    former = former.masked_fill(is_first[:, None], 0)
    residual, wide = tokens - former, tokens.float()
    length = wide.norm(dim=-1).clamp(min=_SMALLEST)
    ratio = residual.float().norm(dim=-1) / length
    cosine = F.cosine_similarity(wide, former.float(), dim=-1, eps=_SMALLEST)
    return residual, torch.stack((ratio, cosine), dim=-1)


class ResidualPolicy(Policy):
    """Scores video tokens by what they hold and what is new in them.

    Args:
        config: the text config of the backbone.
        attention: `"none"`, blind to the question, after the paper; or `"question"` (ours): tokens also read the text, as in the light policy.
    """

    policy_type = "residual"
    tokens_per_chunk = 8192

    def __init__(self, config, attention: str = "question"):
        shape = attention_shape(config, stock_layer(config))
        super().__init__(config, attention, shape)
        size, read = shape.hidden_size, 0
        if attention == "question":
            read = shape.num_key_value_heads * shape.head_dim
            self.layer = Reading(shape, turning_of(config.model_type).pairs)
            self.read_norm = RMSNorm(read, shape.eps)
        self.norm = nn.LayerNorm(size)
        self.residual_norm = nn.LayerNorm(size)
        self.trunk = nn.Linear(2 * size + 2 + 2 * read, RESIDUAL_WIDTH)
        self.token_head = nn.Sequential(nn.Linear(RESIDUAL_WIDTH, 2))
        self.frame_head = nn.Sequential(nn.Linear(2 * RESIDUAL_WIDTH, 2))

    def _context(self, embeds: Tensor, rope: Rope, layout: PromptLayout, row: int) -> Context:
        """Keys and values of the row's text; nothing without the question."""
        if self.attention == "none":
            return ()
        places = self._text_places(layout, row)
        states = self.layer.input_layernorm(embeds[places])
        return self.layer.keys(states, turned_at(rope, places)), self.layer.values(states)

    def _states(self, context: Context, embeds: Tensor, rope: Rope, places: Tensor, former: Tensor) -> Tensor:
        """Return the trunk's output `(n, RESIDUAL_WIDTH)`."""
        tokens = embeds[places]
        residual, amount = change(tokens, embeds[former], former == places)
        parts = [self.norm(tokens), self.residual_norm(residual), amount.to(tokens.dtype)]
        if context:
            states = self.layer.input_layernorm(tokens)
            held = self.read_norm(self.layer.values(states).transpose(0, 1).flatten(1))
            query = self.layer.queries(states, turned_at(rope, places))
            key, value = context
            read = self.read_norm(attend(query, key, value, scale=self.shape.scale))
            parts += [read, held * read]
        return F.gelu(self.trunk(torch.cat(parts, dim=-1)))

    def _readings(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the frame head reads: their mean and their maximum over a frame's tokens."""
        return states, torch.cat((states.mean(dim=1), states.amax(dim=1)), dim=-1)

    @torch.no_grad()
    def init_from_layer(self, layer: Any, language_model: Any = None) -> None:
        """Start what reads the question from a decoder layer, as the light policy does; without the question there is nothing to start."""
        if self.attention == "question":
            copy_reading(self.layer, layer)
