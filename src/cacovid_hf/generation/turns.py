"""Later turns of a conversation: the prompt that goes on from a cache.

The caller does as with a stock model, and gives the ids of the whole conversation and the cache. What the cache holds is its `CacheRecord`.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..prompt import CompressedPrompt
from .cache_record import CacheRecord, record_of
from .call import PromptInputs
from .inputs import cached_length
from .refused import check_gaps, check_hidden

_REMEDY = "give as input_ids the whole conversation, which begins with what the earlier turn returned, or start without a cache"


def compress_turn(model: Any, cache: Any, given: PromptInputs, **how: Any) -> CompressedPrompt:
    """Return the prompt of a later turn: what is cached, then what is new, its videos compressed.

    The policy reads the new turn alone.

    Args:
        model: a `CaCoVidForConditionalGeneration`.
        cache: of the earlier turns; those may be stock turns.
        given: ids, mask and `position_ids`, if any, of the whole conversation; pixels and grids of all of it or of the new turn.
        **how: for `model.compress`.

    Returns:
        `(B, C + K)`; the embeddings of the `C` cached positions, and what stands beside them, are zero.

    Raises:
        ValueError: the cache is not that of the conversation, or rows have padding between turns that a state would read, or hide what it has read.
    """
    family, config = given.family, model.backbone.config
    input_ids, attention_mask, inputs = given.input_ids, given.attention_mask, dict(given.others)
    position_ids = inputs.pop("position_ids", None)
    start, record = _known(model, cache, input_ids, attention_mask, inputs)
    mask = record.mask(attention_mask)
    new_ids, new_mask = input_ids[:, start:], attention_mask[:, start:]
    new_inputs = _inputs_of(model, input_ids, attention_mask, inputs, slice(start, input_ids.shape[1]))
    if position_ids is None:
        following = record.next_positions(mask)[:, None]
        position_ids = family.position_ids(model.backbone, new_ids, new_mask, new_inputs) + following
        position_ids = position_ids.masked_fill(new_mask == 0, 0)
    else:
        position_ids = position_ids[..., start:]
    new: CompressedPrompt = model.compress(new_ids, new_mask, position_ids=position_ids, **new_inputs, **how)

    attends = torch.cat([mask.to(new.attention_mask), new.attention_mask], dim=1)
    check_gaps(config, attends)
    if CacheRecord.has_record(cache):  # of a stock turn it is not known what was padding
        check_hidden(config, record.places >= 0, attends)
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
    """Return the first place that is not cached, and what is cached, checked against the conversation."""
    record = (
        record_of(cache)
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


def _stock_record(
    model: Any, cache: Any, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any]
) -> CacheRecord:
    """Of a cache that a stock turn left, whose positions are those of the conversation from its beginning."""
    length = cached_length(cache)
    ids, mask = input_ids[:, :length], attention_mask[:, :length]
    if ids.shape[1] < length:
        raise ValueError(f"The cache holds {length} positions, input_ids {ids.shape[1]}: {_REMEDY}.")
    counted = model.family.counts_positions
    known = {} if counted else _inputs_of(model, input_ids, attention_mask, inputs, slice(0, length))
    positions = model.family.position_ids(model.backbone, ids, mask, known)
    return CacheRecord(
        token_ids=ids,
        places=torch.arange(length, device=ids.device).expand(ids.shape),
        positions=positions if positions.ndim == 2 else positions[-1],
    )


def _inputs_of(
    model: Any, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any], part: slice
) -> dict[str, Any]:
    """Pixels, grids and token types of one part of the conversation, given those of the whole, or of the new turn alone."""
    family, config = model.family, model.backbone.config
    ids = input_ids.cpu()
    is_video, is_image = family.places(config, ids, inputs)
    is_new = part.stop == ids.shape[1]

    videos: list[int] | None = None
    if family.num_placeholders(config, inputs) == int(is_video.sum()):
        spans = family.layout(config, input_ids, attention_mask, inputs).videos
        ends = [(int(span.positions[0]), int(span.positions[-1]) + family.trailing_tokens) for span in spans]
        videos = _numbers_within(ends, part, "a video")
    elif not is_new and bool(is_video[:, part].any()):
        raise ValueError(_unknown(part))

    images: list[int] | None = None
    if not bool(is_image[:, part].any()):
        images = []
    elif sum(lengths := family.image_lengths(model.backbone, inputs)) == int(is_image.sum()):
        of_images = is_image.nonzero()[:, 1].split(lengths)
        images = _numbers_within([(int(places[0]), int(places[-1])) for places in of_images], part, "an image")
    elif not is_new:
        raise ValueError(_unknown(part))
    taken = family.take(inputs, videos, images)
    if videos is not None and "encoded_videos" in inputs:
        taken = {**taken, "encoded_videos": inputs["encoded_videos"].take(videos)}
    types = inputs.get("mm_token_type_ids")
    if types is not None:
        if types.shape[1] != ids.shape[1]:
            raise ValueError(
                f"mm_token_type_ids has {types.shape[1]} places, input_ids {ids.shape[1]}: give both of the whole conversation, with 0 at words."
            )
        taken = {**taken, "mm_token_type_ids": types[:, part]}
    return taken


def _numbers_within(ends: list[tuple[int, int]], part: slice, what: str) -> list[int]:
    """Return which of the videos, or images, with these first and last places stand in one part of the conversation."""
    for first, last in ends:
        if first < part.start <= last or first < part.stop <= last:
            raise ValueError(
                f"The cache ends at place {part.start or part.stop} of the conversation, inside {what} (places {first} to {last}), so "
                f"it is not of this conversation: {_REMEDY}."
            )
    return [number for number, (first, _) in enumerate(ends) if part.start <= first < part.stop]


def _unknown(part: slice) -> str:
    return (
        f"The cache holds the first {part.stop} places of the conversation, images or videos among them, and the pixel inputs are not those "
        "of the whole conversation, so that its positions are not known: give everything that the processor returns for the whole conversation."
    )
