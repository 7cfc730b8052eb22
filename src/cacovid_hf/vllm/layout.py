"""What is where in a prompt, before and after compression: known on the front end from token ids and grids, before any video is seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .positions import MediaItem


@dataclass(frozen=True)
class PromptPlan:
    """The places and positions of one prompt.

    Attributes:
        text_ids: int64 `(n,)`, the tokens that are not placeholders.
        text_positions: int64 `(n,)`, theirs in the uncompressed prompt. Compression does not change them.
        starts: of each media item, the first position of its uncompressed tokens.
        places: of each media item, the index of its first token in the compressed prompt.
        text_before: of each media item, how many of `text_ids` stand before it.
    """

    text_ids: Tensor
    text_positions: Tensor
    starts: list[int]
    places: list[int]
    text_before: list[int]


def plan_prompt(
    prompt: Sequence[int], placeholders: Mapping[int, str], items: Sequence[MediaItem], lengths: Sequence[int]
) -> PromptPlan:
    """Lay out a prompt.

    Args:
        prompt: token ids with one placeholder per item.
        placeholders: modality by placeholder id.
        items: in the order of the prompt.
        lengths: how many placeholders of each item stay.

    Raises:
        ValueError: placeholders and items do not match.
    """
    found = [placeholders[token] for token in prompt if token in placeholders]
    if found != [item.modality for item in items]:
        raise ValueError(
            f"The prompt has placeholders for {', '.join(found) or 'nothing'}, and {', '.join(item.modality for item in items) or 'nothing'} came with it. "
            "Give one placeholder per image and video, in order."
        )
    ids: list[int] = []
    positions: list[int] = []
    starts: list[int] = []
    places: list[int] = []
    before: list[int] = []
    position = place = 0
    waiting = iter(zip(items, lengths, strict=True))
    for token in prompt:
        if token in placeholders:
            item, length = next(waiting)
            starts.append(position)
            places.append(place)
            before.append(len(ids))
            position += item.advance
            place += length
        else:
            ids.append(token)
            positions.append(position)
            position += 1
            place += 1
    return PromptPlan(
        torch.tensor(ids, dtype=torch.long), torch.tensor(positions, dtype=torch.long), starts, places, before
    )
