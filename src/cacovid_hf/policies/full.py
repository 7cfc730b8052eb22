"""The published policy: one decoder layer of the language model and two heads (CaCoVID, arXiv 2602.01649, section on the policy network).

The paper's layer is a Qwen2 layer, started from layer 0. Ours is a layer of the backbone's own kind (`layer.py`), started from the first layer that attends.
Three things of a layer are left out: sliding windows (a video token attends to all that `attention` allows), attention in both directions inside a frame, and
dropout.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..prompt import PromptLayout
from ..utils.tensors import to_device_async
from .base import Context, Policy
from .from_layer import copy_layer
from .layer import DecoderLayer, RMSNorm, Rope, turned_at
from .rotary import turning_of
from .shape import attention_shape, block_shape, stock_layer


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
        config: the text config of the backbone: sizes, activation, rotary parameters.
        attention: what a video token may attend to in the policy's layer: `"causal"`, everything before it (what the published code runs);
            `"bidirectional"`, the whole prompt (the paper's text); `"question"`, the text of the prompt alone (ours: `N x M` instead of
            `N x N`, and question-aware within minutes of training).

    Raises:
        ValueError: a language model whose layer is not imitated.
    """

    policy_type = "full"
    tokens_per_chunk = 4096  # its MLP is several times as wide as the prompt

    def __init__(self, config, attention: str = "question"):
        stock = stock_layer(config)
        super().__init__(config, attention, attention_shape(config, stock))
        self.layer = DecoderLayer(self.shape, block_shape(config, stock), turning_of(config.model_type).pairs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.token_head = scoring_head(config.hidden_size)
        self.frame_head = scoring_head(config.hidden_size)

    def _context(self, embeds: Tensor, rope: Rope, layout: PromptLayout, row: int) -> Context:
        """Keys and values; of causal attention its result, since its queries are the keys then and no mask is needed."""
        layer, question = self.layer, self.attention == "question"
        places = self._text_places(layout, row) if question else to_device_async(layout.valid_places[row], self.device)
        states, rope = layer.input_layernorm(embeds[places]), turned_at(rope, places)
        key, value = layer.self_attn.read(states, rope)
        if self.attention == "causal":
            mixed = layer.self_attn(states, rope, key, value, is_causal=True)
            return (mixed.new_zeros(len(embeds), mixed.shape[-1]).index_copy(0, places, mixed),)
        return key, value

    def _states(self, context: Context, embeds: Tensor, rope: Rope, places: Tensor, former: Tensor) -> Tensor:
        """Return the layer's output."""
        layer, states = self.layer, embeds[places]
        if self.attention == "causal":
            mixed = context[0][places]
        else:
            mixed = layer.self_attn(layer.input_layernorm(states), turned_at(rope, places), *context)
        return layer.finish(states, mixed)

    def _readings(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the frame head reads: the mean over a frame's tokens."""
        return self.norm(states), self.norm(states.mean(dim=1))

    @torch.no_grad()
    def init_from_layer(self, layer: Any, language_model: Any = None) -> None:
        """Copy a decoder layer of the language model into the policy's, in the policy's dtype.

        Published: the layer 0. Where that is linear attention, the first one that attends, `shape.layer`.
        Works for quantised, sharded, offloaded and adapted layers: a linear layer that is not plain is read through what it
        computes. Experts are read where they are in memory.

        Args:
            layer: of the language model.
            language_model: needed where layers have inputs of their own (small Gemma 4 models), which it makes.

        Raises:
            ValueError: a layer without the parts that the policy was made for.
        """
        copy_layer(self.layer, layer, language_model)
