"""What a cache of a compressed prompt holds: which places of the caller's prompt are cached, at which positions.

This travels with the cache object itself, whatever its class: a stock `DynamicCache` or `StaticCache`, a deep copy, or what `Cache.crop` leaves of it.
Nothing is on the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..prompt import CompressedPrompt
from .inputs import cached_length

_ATTRIBUTE = "_cacovid_record"


@dataclass(frozen=True)
class CacheRecord:
    """What each position of a cache stands for.

    Attributes:
        token_ids: int64 `(B, C)`.
        places: int64 `(B, C)`, the place in the caller's prompt, -1 at padding.
        positions: int64 `(B, C)`, the rotary position (of several rows, the last).
    """

    token_ids: Tensor
    places: Tensor
    positions: Tensor

    @property
    def num_places(self) -> int:
        """Width of the caller's prompt that the cache covers."""
        return int(self.places.max()) + 1

    @staticmethod
    def has_record(cache: Any) -> bool:
        """Whether a cache holds a turn of ours, so that no stock call can go on from it."""
        return cached_length(cache) > 0 and _ATTRIBUTE in vars(cache)

    @classmethod
    def of(cls, cache: Any) -> "CacheRecord | None":
        """Return what a cache that a turn of ours left holds; None if that is not known (of a beam search, of a call that failed)."""
        record: CacheRecord | None = vars(cache)[_ATTRIBUTE] if cls.has_record(cache) else None
        length = cached_length(cache)
        return None if record is None or length > record.token_ids.shape[1] else record.first(length)

    @staticmethod
    def mark_unknown(cache: Any) -> None:
        """Say of a cache that what it holds is not known."""
        setattr(cache, _ATTRIBUTE, None)

    def store(self, cache: Any) -> None:
        """Say of a cache that it holds this."""
        setattr(cache, _ATTRIBUTE, self)

    @classmethod
    def remember(cls, cache: Any, prompt: CompressedPrompt, sequences: Tensor, length: int) -> None:
        """Say of a cache what it holds after a turn.

        Args:
            cache: what the turn left.
            prompt: `(B, K)`, of the turn, earlier turns included.
            sequences: `(R, length + n)`, what was returned; `R` is `B` times the sequences of each prompt.
            length: of the caller's prompt.
        """
        repeats = len(sequences) // len(prompt.input_ids)
        added = cached_length(cache) - prompt.input_ids.shape[1]
        steps = torch.arange(added, device=prompt.kept_indices.device)
        positions = prompt.position_ids if prompt.position_ids.ndim == 2 else prompt.position_ids[-1]
        token_ids, places, positions = (
            values.repeat_interleave(repeats, dim=0) for values in (prompt.input_ids, prompt.kept_indices, positions)
        )
        made = sequences[:, length : length + added].to(token_ids)
        cls(
            token_ids=torch.cat([token_ids, made], dim=1),
            places=torch.cat([places, (length + steps).expand(len(places), -1)], dim=1),
            positions=torch.cat([positions, positions[:, -1:] + 1 + steps], dim=1),
        ).store(cache)

    def first(self, length: int) -> "CacheRecord":
        """Of the first `length` positions."""
        return CacheRecord(self.token_ids[:, :length], self.places[:, :length], self.positions[:, :length])

    def mask(self, attention_mask: Tensor) -> Tensor:
        """Return the part of the caller's `attention_mask` `(B, L)` that concerns the cache: bool `(B, C)`, true = a token."""
        return (self.places >= 0) & attention_mask.bool().gather(1, self.places.clamp(min=0))

    def next_positions(self, mask: Tensor) -> Tensor:
        """Return the rotary position `(B,)` of the token that comes next, given `mask` `(B, C)`."""
        columns = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        last = columns.masked_fill(~mask, -1).amax(dim=1)
        positions = self.positions.gather(1, last.clamp(min=0)[:, None])[:, 0] + 1
        return positions.masked_fill(last < 0, 0)


def remember_turn(
    cache: Any, prompt: CompressedPrompt, outputs: Any, input_ids: Tensor, settings: GenerationConfig
) -> None:
    """Say of the cache that `generate` left what it holds; of a beam search that is not known."""
    if cache is None:
        return
    CacheRecord.mark_unknown(cache)
    if (settings.num_beams or 1) == 1:
        sequences = outputs if isinstance(outputs, Tensor) else outputs.sequences
        CacheRecord.remember(cache, prompt, sequences, input_ids.shape[1])


def record_of(cache: Any) -> CacheRecord:
    """Return what a recorded cache holds, or an error that says that nobody knows."""
    record = CacheRecord.of(cache)
    if record is None:
        raise ValueError(
            f"The cache holds {cached_length(cache)} positions that are not known to belong to a prompt (of a beam search, of a call that "
            "failed, or written by other means): start without a cache."
        )
    return record


def text_step(
    cache: Any, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None
) -> tuple[dict[str, Tensor], CacheRecord]:
    """One step of a loop of the caller's own: new text behind the cache of a compressed prompt.

    Example: a prompt of `L = 6` places, of which four are video tokens `v` and two of these were kept; then `n = 2` new tokens.

    ```
    caller's prompt      <s> v  v  v  v  Q  | so what       L + n = 8 places, attention_mask of 8
    cached               <s>    v     v  Q  |               4 entries
    positions             0     2     4  5  | 6  7          new text goes on from the uncompressed prompt
    for the backbone                          so what       attention_mask of 4 + 2
    ```

    Args:
        cache: a recorded one.
        input_ids: `(B, n)`, the new tokens alone, as for a stock model.
        attention_mask: `(B, L + n)`, of the caller's prompt, what followed it, and the new tokens; None: what is cached is as it was, the new
            tokens are all tokens.
        position_ids: of the new tokens; None: they go on from the uncompressed prompt.

    Returns:
        What the backbone takes beside the cache, and what the cache will hold.

    Raises:
        ValueError: the cache is not known, or of another batch or width.
    """
    record = record_of(cache)
    if len(record.token_ids) != len(input_ids):
        raise ValueError(
            f"The cache holds {len(record.token_ids)} sequences, input_ids {len(input_ids)}: go on with as many as there were, or start without a cache."
        )
    start, width = record.num_places, input_ids.shape[1]
    if attention_mask is None:
        mask, new_mask = record.places >= 0, torch.ones_like(input_ids, dtype=torch.bool)
    elif attention_mask.shape[1] != start + width:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} places, the cache covers {start} of the uncompressed conversation and input_ids adds "
            f"{width}: give the mask of all {start + width}, or none, and as input_ids the new tokens alone."
        )
    else:
        mask, new_mask = record.mask(attention_mask), attention_mask[:, start:].bool()
    if position_ids is None:
        position_ids = record.next_positions(mask)[:, None] + new_mask.long().cumsum(1) - 1
        position_ids = position_ids.masked_fill(~new_mask, 0)
    positions = (position_ids if position_ids.ndim == 2 else position_ids[-1]).expand(input_ids.shape)
    places = torch.arange(start, start + width, device=input_ids.device).expand(input_ids.shape)
    following = CacheRecord(
        token_ids=torch.cat([record.token_ids, input_ids], dim=1),
        places=torch.cat([record.places, places.masked_fill(~new_mask, -1)], dim=1),
        positions=torch.cat([record.positions, positions.to(record.positions)], dim=1),
    )
    attends = torch.cat([mask, new_mask], dim=1).long()
    return {"input_ids": input_ids, "attention_mask": attends, "position_ids": position_ids}, following
