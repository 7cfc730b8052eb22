"""Windows of layers of sliding attention: a window covers places of the uncompressed prompt, also where most of them were dropped.

Stock code counts the tokens that are left, and would let a window reach further back than in the uncompressed prompt. A pre-hook on the language model gives
it masks that count places. What its caches hold of a sliding layer is always enough: a window of places has at most as many kept tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import CACHE, MaskRule, causal_mask
from ..utils.hooks import Hook, attached


@contextmanager
def masked_by_places(language_model: nn.Module, places: Tensor, joint: Tensor | None = None) -> Iterator[None]:
    """Within the block, layers of sliding attention of this thread see what they would see of the uncompressed prompt.

    Args:
        language_model: that the prompt runs through.
        places: int64 `(B, K)`, of its tokens in the uncompressed prompt, -1 at padding; rows may come repeated next to each other (beams). What is
            generated stands behind the last place of each row.
        joint: bool `(B, K)`, tokens that see all of their row of such tokens, in both directions (frames, in some families); None: there are none.
    """
    with attached(Hook(language_model, pre=_Masks(language_model.config, places, joint))):
        yield


class _Masks:
    """The hook of one call."""

    def __init__(self, config: Any, places: Tensor, joint: Tensor | None):
        self.config, self.places = config, places
        self.rows = None if joint is None else row_numbers(joint)
        kinds = list(config.layer_types)
        self.sliding = kinds.index("sliding_attention")
        self.full = kinds.index("full_attention") if "full_attention" in kinds else None
        self.cache: Any = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        embeds, mask, cache = kwargs["inputs_embeds"], kwargs.get("attention_mask"), kwargs.get(CACHE)
        if cache is not None:
            self.cache = cache if self.cache is None else self.cache
            if cache is not self.cache:
                return None  # another prompt, of a caller within this call
        masks: dict[str, Any] = mask if isinstance(mask, dict) else {}
        if not masks and self.full is not None:
            masks["full_attention"] = causal_mask(self.config, embeds, mask, cache, self.full)
        also, only = self._rules(embeds)
        # Padding is a matter of `only`, so that no mask of two dimensions is needed.
        masks = {**masks, "sliding_attention": causal_mask(self.config, embeds, None, cache, self.sliding, also, only)}
        return args, {**kwargs, "attention_mask": masks}

    def _rules(self, embeds: Tensor) -> tuple[MaskRule | None, MaskRule]:
        """Which keys a query sees beside those before it, and which of all these alone."""
        repeats = embeds.shape[0] // len(self.places)
        places = self.places.to(embeds.device).repeat_interleave(repeats, dim=0)
        last, behind = places.shape[1] - 1, places.amax(dim=1)
        window = self.config.sliding_window

        def place(row: Tensor, column: Tensor) -> Tensor:
            """Of a column; columns behind the prompt go on from it."""
            return torch.where(
                column > last, behind[row] + column - last, places[row, torch.as_tensor(column).clamp(max=last)]
            )

        def only(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            found = place(row, key)
            return (found >= 0) & (found > place(row, query) - window)

        if self.rows is None:
            return None, only
        numbers = self.rows.to(embeds.device).repeat_interleave(repeats, dim=0)

        def number(row: Tensor, column: Tensor) -> Tensor:
            return torch.where(column > last, -1, numbers[row, column.clamp(max=last)])

        def also(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (number(row, query) == number(row, key)) & (number(row, query) >= 0)

        return also, only


def row_numbers(joint: Tensor) -> Tensor:
    """Return the number, from 0, of the unbroken row of true columns that each column is in, -1 at those that are false: bool `(B, K)` to int64."""
    before = nn.functional.pad(joint, (1, 0))[:, :-1]
    return ((joint & ~before).cumsum(1) - 1).masked_fill(~joint, -1)
