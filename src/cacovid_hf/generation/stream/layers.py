"""The layers of a language model as a memory of keys and values sees them: keys before the rotary embedding, and caches that fill themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..._compat import CACHE
from ...policies.rotary import cos_sin, turning_of
from ...utils.hooks import Hook, attached
from ...utils.tensors import rotate

Fetch = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class Layers:
    """A stock decoder.

    Args:
        decoder: the language model.

    Attributes:
        config: its text config.
        heads: `H`, key-value heads.
        head_dim: `d`.
    """

    def __init__(self, decoder: Any):
        self.decoder, self.config = decoder, decoder.config
        self.attentions = [layer.self_attn for layer in decoder.layers]
        self.heads: int = self.config.num_key_value_heads
        self.head_dim: int = self.attentions[0].head_dim
        self.kinds: Any = getattr(self.config, "layer_types", None) or [None] * len(self.attentions)

    def __len__(self) -> int:
        return len(self.attentions)

    def before_turning(self, name: str) -> list[nn.Module]:
        """Return what makes queries (`q`) or keys (`k`) of every layer, as they are before the rotary embedding."""
        parts: list[dict[str, Any]] = [dict(attention.named_children()) for attention in self.attentions]
        return [part[f"{name}_norm"] if f"{name}_norm" in part else part[f"{name}_proj"] for part in parts]

    @torch.no_grad()
    def read(self, embeds: Tensor, positions: Tensor, behind: tuple[Tensor, Tensor] | None) -> Tensor:
        """Run embeddings through the decoder, and give keys before the rotary embedding and values: `(layers, 2, H, d, n)`.

        Args:
            embeds: `(1, n, D)`.
            positions: `(1, n)` or `(4, 1, n)`, of these.
            behind: what they come behind: `(layers, 2, H, d, m)`, and the positions of those.
        """
        cache: Any = DynamicCache(config=self.config)
        length = 0
        if behind is not None and behind[0].shape[-1]:
            states, places = behind
            length = states.shape[-1]
            for layer in range(len(self)):
                cache.update(*self.turned(layer, states[layer], places), layer)
        found: dict[int, Tensor] = {}

        def note(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            found[layer] = output.reshape(embeds.shape[1], self.heads, self.head_dim).permute(1, 2, 0)

        hooks = [Hook(part, post=partial(note, layer)) for layer, part in enumerate(self.before_turning("k"))]
        mask = torch.ones(1, length + embeds.shape[1], dtype=torch.long, device=embeds.device)
        with attached(*hooks):
            self.decoder(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, **{CACHE: cache}
            )
        device = embeds.device
        values = [cache.layers[layer].values[0, :, length:].mT for layer in range(len(self))]
        return torch.stack(
            [torch.stack([found[layer].to(device), values[layer].to(device)]) for layer in range(len(self))]
        )

    def turned(self, layer: int, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys as queries meet them, and values, `(1, H, m, d)` each.

        Args:
            layer: its number.
            states: `(2, H, d, m)`, keys before the rotary embedding and values.
            positions: `(1, m)` or `(4, 1, m)`.
        """
        rows = positions[..., 0, :].to(states.device)
        cos, sin = cos_sin(self.config, self.head_dim, self.kinds[layer], rows, torch.float32)
        keys, values = states.mT
        turned = rotate(keys.float(), cos, sin, turning_of(self.config.model_type).pairs)
        return turned[None].to(states.dtype), values[None]


class _Retrieved(DynamicLayer):
    """The cache of a layer that fetches its beginning when the layer first runs, since what is fetched depends on the queries there."""

    def __init__(self, length: int, fetch: Callable[[], tuple[Tensor, Tensor]]):
        super().__init__()
        self.length, self.fetch = length, fetch
        self.is_waiting = True

    def get_seq_length(self) -> int:
        return self.length if self.is_waiting else super().get_seq_length()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.is_waiting:
            self.is_waiting = False
            keys, values = (part.to(key_states).expand(len(key_states), -1, -1, -1) for part in self.fetch())
            super().update(keys, values)
        return super().update(key_states, value_states, *args, **kwargs)


@contextmanager
def retrieving(layers: Layers, length: int, fetch: Fetch) -> Iterator[DynamicCache]:
    """Return a cache for one prompt, whose layers begin with what `fetch` gives for the mean query of the words that enter first.

    Args:
        layers: of the language model.
        length: positions that are fetched.
        fetch: from a layer's number, and the mean over words and over the heads that share a key, `(H * d,)`, to keys and values `(1, H, length, d)`.
    """
    queries: dict[int, Tensor] = {}

    def note(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        queries.setdefault(
            layer, output[0].reshape(output.shape[1], layers.heads, -1, layers.head_dim).mean((0, 2)).flatten()
        )

    cache = DynamicCache(config=layers.config)
    cache.layers = [
        _Retrieved(length, lambda layer=layer: fetch(layer, queries[layer]))  # type: ignore[misc]
        for layer in range(len(layers))
    ]
    hooks = [Hook(part, post=partial(note, layer)) for layer, part in enumerate(layers.before_turning("q"))]
    with attached(*hooks):
        yield cache
