"""What the front end tells the worker of one video, as a row of integers: vLLM carries tensors."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from ..ratio import token_budget
from .layout import PromptPlan, plan_prompt
from .methods import SERVED
from .positions import MediaItem
from .requests import Asked


@dataclass(frozen=True)
class VideoOrder:
    """What is to be done with one video of a prompt.

    Attributes:
        start: its first position in the uncompressed prompt.
        place: index of its first token in the compressed prompt.
        length: placeholders that stay, trailing ones included.
        advance: see `MediaItem`.
        text_before: how many text tokens of the prompt stand before it.
        method: number of the method in `methods.SERVED`.
        retention_ratio: in (0, 1].
        key: of the video alone, whatever is asked about it.
    """

    start: int
    place: int
    length: int
    advance: int
    text_before: int
    method: int
    retention_ratio: float
    key: tuple[int, ...]

    def packed(self) -> Tensor:
        """Int64 `(n,)`; the ratio by its bits, because the budget must be the same integer on both sides."""
        values = asdict(self)
        key, ratio = values.pop("key"), values.pop("retention_ratio")
        return torch.tensor([*values.values(), _as_integer(ratio), *key])

    @classmethod
    def unpacked(cls, row: Tensor) -> "VideoOrder":
        """Return the order that `packed` gave."""
        numbers = row.tolist()
        names = [field.name for field in fields(cls) if field.name not in ("retention_ratio", "key")]
        values = dict(zip(names, numbers, strict=False))
        return cls(**values, retention_ratio=_as_float(numbers[len(names)]), key=tuple(numbers[len(names) + 1 :]))


def _as_integer(number: float) -> int:
    return struct.unpack("<q", struct.pack("<d", number))[0]


def _as_float(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def key_of(digest: str) -> tuple[int, ...]:
    """Return a video's key from vLLM's hash of it: four integers of 64 bits."""
    return struct.unpack("<4q", hashlib.sha256(digest.encode()).digest())


def orders_of(
    asked: Asked, placeholders: Mapping[int, str], items: Mapping[str, Sequence[MediaItem]]
) -> tuple[list[VideoOrder], PromptPlan]:
    """Return what is to be done with each video of a prompt, in order, and where everything in it goes.

    Args:
        asked: with the prompt, and vLLM's hashes of its media.
        placeholders: modality by placeholder id.
        items: the images and videos of the prompt, by modality.

    Raises:
        ValueError: placeholders and media do not match.
    """
    modalities = [placeholders[token] for token in asked.prompt if token in placeholders]
    if any(modalities.count(modality) != len(found) for modality, found in items.items()):
        plan_prompt(asked.prompt, placeholders, [item for found in items.values() for item in found], [])  # says so
    waiting = {modality: iter(found) for modality, found in items.items()}
    in_order = [next(waiting[modality]) for modality in modalities]
    budgets = iter(
        token_budget(item.num_tokens, ratio) + item.trailing
        for item, ratio in zip(items["video"], asked.ratios, strict=True)
    )
    lengths = [next(budgets) if item.modality == "video" else item.length for item in in_order]
    plan = plan_prompt(asked.prompt, placeholders, in_order, lengths)
    digests = dict(asked.digests)["video"]
    numbers = [number for number, item in enumerate(in_order) if item.modality == "video"]
    orders = [
        VideoOrder(
            start=plan.starts[number],
            place=plan.places[number],
            length=lengths[number],
            advance=in_order[number].advance,
            text_before=plan.text_before[number],
            method=SERVED.index(asked.method),
            retention_ratio=ratio,
            key=key_of(digest),
        )
        for number, ratio, digest in zip(numbers, asked.ratios, digests, strict=True)
    ]
    return orders, plan


def check_room(orders: Sequence[VideoOrder], positions: int) -> None:
    """Refuse prompts that are longer than the positions of a model before compression: vLLM counts what stays, and its engine would end.

    Args:
        orders: of the videos of a prompt, in order, at least one.
        positions: of the language model. vLLM makes four times as many, so that there is room for what follows.

    Raises:
        ValueError: the last video ends behind them.
    """
    end = orders[-1].start + orders[-1].advance
    if end > positions:
        raise ValueError(
            f"Uncompressed, the prompt has {end} positions up to the end of its last video, and the model has {positions}: give fewer or shorter videos."
        )
