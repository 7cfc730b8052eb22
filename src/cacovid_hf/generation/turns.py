"""Later turns of a conversation: what a cache of a compressed prompt holds, and the prompt that goes on from it.

What must be known of the earlier turns (which places of the caller's prompt are cached, at which positions) travels with the cache object
itself, whatever its class: a stock `DynamicCache` or `StaticCache`, a deep copy, or what `Cache.crop` leaves of it. Nothing is on the model,
and the caller does as with a stock model: the ids of the whole conversation, and the cache.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..backbones.base import Backbone
from ..prompt import CompressedPrompt
from .call import PromptInputs
from .inputs import cached_length

_ATTRIBUTE = "_cacovid_record"
_REMEDY = "give as input_ids the whole conversation, which begins with what the earlier turn returned, or start without a cache"


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
        """What a cache that a turn of ours left holds; None if that is not known (of a beam search, of a call that failed)."""
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
        """The part of the caller's `attention_mask` `(B, L)` that concerns the cache: bool `(B, C)`, true = a token."""
        return (self.places >= 0) & attention_mask.bool().gather(1, self.places.clamp(min=0))

    def next_positions(self, mask: Tensor) -> Tensor:
        """The rotary position `(B,)` of the token that comes next, given `mask` `(B, C)`."""
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
    record = _record_of(cache)
    if len(record.token_ids) != len(input_ids):
        raise ValueError(f"The cache holds {len(record.token_ids)} sequences, input_ids {len(input_ids)}.")
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


def compress_turn(model: Any, cache: Any, given: PromptInputs, **how: Any) -> CompressedPrompt:
    """The prompt of a later turn: what is cached, then what is new, its videos compressed.

    The policy reads the new turn alone.

    Args:
        model: a `CaCoVidForConditionalGeneration`.
        cache: of the earlier turns; those may be stock turns.
        given: ids, mask and `position_ids`, if any, of the whole conversation; pixels and grids of all of it or of the new turn.
        **how: for `model.compress`.

    Returns:
        `(B, C + K)`; the embeddings of the `C` cached positions, and what stands beside them, are zero.

    Raises:
        ValueError: the cache is not that of the conversation.
    """
    family, config = given.family, model.backbone.config
    input_ids, attention_mask, inputs = given.input_ids, given.attention_mask, dict(given.others)
    position_ids = inputs.pop("position_ids", None)
    start, record = _known(model, cache, input_ids, attention_mask, inputs)
    mask = record.mask(attention_mask)
    new_ids, new_mask = input_ids[:, start:], attention_mask[:, start:]
    new_inputs = _inputs_of(family, config, input_ids, attention_mask, inputs, slice(start, input_ids.shape[1]))
    if position_ids is None:
        following = record.next_positions(mask)[:, None]
        position_ids = family.position_ids(model.backbone, new_ids, new_mask, new_inputs) + following
        position_ids = position_ids.masked_fill(new_mask == 0, 0)
    else:
        position_ids = position_ids[..., start:]
    new: CompressedPrompt = model.compress(new_ids, new_mask, position_ids=position_ids, **new_inputs, **how)

    attends = torch.cat([mask.to(new.attention_mask), new.attention_mask], dim=1)
    places = torch.where(new.kept_indices >= 0, new.kept_indices + start, -1)
    positions = record.positions.expand(*new.position_ids.shape[:-1], -1)
    positions = torch.cat([positions, new.position_ids], dim=-1)
    if positions.ndim == 3 and positions.shape[0] == 4:
        positions[0] = (attends.cumsum(1) - 1).clamp(min=0)
    embeds = new.inputs_embeds
    cached = embeds.new_zeros(1, 1, 1).expand(len(embeds), mask.shape[1], embeds.shape[-1])
    return CompressedPrompt(
        input_ids=torch.cat([record.token_ids, new.input_ids], dim=1),
        inputs_embeds=torch.cat([cached, embeds], dim=1),
        attention_mask=attends,
        position_ids=positions,
        kept_indices=torch.cat([record.places, places], dim=1),
        videos=tuple(dataclasses.replace(video, span=video.span.moved(start)) for video in new.videos),
        extra=None if new.extra is None else torch.nn.functional.pad(new.extra, (0, 0, mask.shape[1], 0)),
        is_plain=new.is_plain,
    )


def _known(
    model: Any, cache: Any, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any]
) -> tuple[int, CacheRecord]:
    """The first place that is not cached, and what is cached, checked against the conversation."""
    record = (
        _record_of(cache)
        if CacheRecord.has_record(cache)
        else _stock_record(model, cache, input_ids, attention_mask, inputs)
    )
    if len(record.token_ids) != len(input_ids):
        raise ValueError(f"The cache holds {len(record.token_ids)} sequences, input_ids {len(input_ids)}: {_REMEDY}.")
    start = record.num_places
    if start >= input_ids.shape[1]:
        raise ValueError(
            f"The cache covers {start} places of the conversation, input_ids has {input_ids.shape[1]}, so nothing is new: {_REMEDY}."
        )
    given = input_ids.gather(1, record.places.clamp(min=0))
    wrong = (given != record.token_ids) & record.mask(attention_mask)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"The cache is of another conversation: row {row} has token {int(record.token_ids[row, column])} at place "
            f"{int(record.places[row, column])}, input_ids {int(given[row, column])}: {_REMEDY}."
        )
    return start, record


def _record_of(cache: Any) -> CacheRecord:
    """What a recorded cache holds, or an error that says that nobody knows."""
    record = CacheRecord.of(cache)
    if record is None:
        raise ValueError(
            f"The cache holds {cached_length(cache)} positions that are not known to belong to a prompt (of a beam search, of a call that "
            "failed, or written by other means): start without a cache."
        )
    return record


def _stock_record(
    model: Any, cache: Any, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any]
) -> CacheRecord:
    """Of a cache that a stock turn left, whose positions are those of the conversation from its beginning."""
    config, length = model.backbone.config, cached_length(cache)
    ids, mask = input_ids[:, :length], attention_mask[:, :length]
    if ids.shape[1] < length:
        raise ValueError(f"The cache holds {length} positions, input_ids {ids.shape[1]}: {_REMEDY}.")
    known = _inputs_of(model.family, config, input_ids, attention_mask, inputs, slice(0, length))
    positions = model.family.position_ids(model.backbone, ids, mask, known)
    return CacheRecord(
        token_ids=ids,
        places=torch.arange(length, device=ids.device).expand(ids.shape),
        positions=positions if positions.ndim == 2 else positions[-1],
    )


def _inputs_of(
    family: Backbone, config: Any, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any], part: slice
) -> dict[str, Any]:
    """Pixels, grids and token types of one part of the conversation, given those of the whole, or of the new turn alone."""
    ids = input_ids.cpu()
    is_video, is_image = family.places(config, ids, inputs)
    is_new = part.stop == ids.shape[1]

    videos: list[int] | None = None
    if family.num_placeholders(config, inputs) == int(is_video.sum()):
        spans = family.layout(config, input_ids, attention_mask, inputs).videos
        videos = []
        for number, span in enumerate(spans):
            first, last = int(span.positions[0]), int(span.positions[-1]) + family.trailing_tokens
            if first < part.start <= last or first < part.stop <= last:
                raise ValueError(
                    f"The cache ends at place {part.start or part.stop} of the conversation, inside a video (places {first} to {last}), so "
                    f"it is not of this conversation: {_REMEDY}."
                )
            if part.start <= first < part.stop:
                videos.append(number)
    elif not is_new and bool(is_video[:, part].any()):
        raise ValueError(_unknown(part))

    images: list[int] | None = None
    begins = family.image_begins(config, is_image)
    if family.num_images(inputs) == int(begins.sum()):
        images = [
            number for number, (_, place) in enumerate(begins.nonzero().tolist()) if part.start <= place < part.stop
        ]
    elif not is_new and bool(is_image[:, part].any()):
        raise ValueError(_unknown(part))
    taken = family.take(inputs, videos, images)
    if videos is not None and "encoded_videos" in inputs:
        taken = {**taken, "encoded_videos": inputs["encoded_videos"].take(videos)}
    types = inputs.get("mm_token_type_ids")
    if types is not None and types.shape[1] == ids.shape[1]:
        taken = {**taken, "mm_token_type_ids": types[:, part]}
    return taken


def _unknown(part: slice) -> str:
    return (
        f"The cache holds the first {part.stop} places of the conversation, images or videos among them, and the pixel inputs are not those "
        "of the whole conversation, so that its positions are not known: give everything that the processor returns for the whole conversation."
    )
