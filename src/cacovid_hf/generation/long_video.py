"""Long videos: features gathered chunk by chunk, frames decoded while the frames before them are encoded."""

import contextlib
import contextvars
import math
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..prompt import EncodedVideos, ReducedAttention
from .wrapped import WrappedModel

Item = TypeVar("Item")


def check_frames_per_chunk(frames_per_chunk: int | None) -> None:
    """Raise a `ValueError` unless it is None or an integer of at least 1."""
    if frames_per_chunk is None:
        return
    if isinstance(frames_per_chunk, bool) or not isinstance(frames_per_chunk, int) or frames_per_chunk < 1:
        raise ValueError(
            f"frames_per_chunk={frames_per_chunk!r}: give the number of frames to encode at a time, at least 1, or None for all."
        )


def join_chunks(
    chunks: Iterable[Tensor], sizes: list[int], device: torch.device | str | None = None
) -> tuple[Tensor, ...]:
    """Join chunks `(n, D)` into tensors `(size, D)` on `device` (None: where the first one is), without holding any chunk twice."""
    tensors: list[Tensor] = []
    filled = 0
    for chunk in chunks:
        if not tensors or filled == len(tensors[-1]):
            tensors.append(chunk.new_empty(sizes[len(tensors)], chunk.shape[-1], device=device))
            filled = 0
        tensors[-1][filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return tuple(tensors)


@torch.no_grad()
def encode_file(
    model: WrappedModel,
    reader: Any,
    video: str | os.PathLike,
    *,
    num_frames: int | None = None,
    frames_per_chunk: int | None = 64,
    device: torch.device | str | None = None,
    overlap: bool = True,
    with_tower_attention: bool = False,
) -> EncodedVideos:
    """Read a video file and run the vision tower over it, a chunk at a time, so that neither its frames nor its pixels are ever all in memory.

    A thread decodes and prepares the next chunk while the model encodes this one. The features are those of the processor's and
    the tower's one go, up to rounding.

    Args:
        model: a wrapped model.
        reader: its processor's video processor, which reads files (see `cacovid_hf.with_video_reader`).
        video: a path or an http(s) address.
        num_frames: at most so many frames; None is the processor's setting.
        frames_per_chunk: so many frames (Qwen2.5-VL: temporal steps of two) at a time; None: all at once.
        device: where the features are to wait; None: where they are made.
        overlap: whether to decode beside the encoding, or in turn with it.
        with_tower_attention: also keep what the vision tower attends to, for methods with `reads_tower`, brought down to tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable video, or a setting out of range.
    """
    check_frames_per_chunk(frames_per_chunk)
    if getattr(reader, "cap_pixels_per_frame", None):
        raise ValueError(
            "cap_pixels_per_frame=True makes the size of a frame depend on their number, which a chunk does not know: set it to False on the "
            "video processor, or give `encode_videos` what the processor returns for the whole video."
        )
    family, config = model.family, model.backbone.config
    per_step = family.frames_per_step(config)

    at_once = None if frames_per_chunk is None else frames_per_chunk * per_step

    def prepared() -> Iterator[tuple[Any, Any]]:
        for frames, metadata in reader.iter_frames(os.fspath(video), at_once, num_frames):
            part = reader.part_settings(len(frames), len(metadata.frames_indices))
            how = dict(do_sample_frames=False, return_metadata=False, return_tensors="pt")
            pixels = reader(videos=[frames], video_metadata=[metadata], **how, **part)
            yield dict(pixels), metadata

    features: Tensor | None = None
    steps = start = height = width = 0
    settings: dict[str, Tensor] = {}
    tower: list[ReducedAttention] = []
    with contextlib.closing(prefetched(prepared()) if overlap else prepared()) as chunks:  # type: ignore[type-var]
        for pixels, metadata in chunks:
            ((t, height, width),) = family.video_grids(config, pixels)
            num_tokens = t * height * width
            if with_tower_attention:
                part, attention = family.encode_frames_with_attention(model.backbone, pixels, (t, height, width))
                tower.append(attention.to(device))
            else:
                part = family.encode_frames(model.backbone, pixels, num_tokens)
            if features is None:
                steps = math.ceil(len(metadata.frames_indices) / per_step)
                size = steps * height * width + family.trailing_tokens
                features = part.new_empty(size, part.shape[-1], device=device)
                settings = family.settings_of_file(config, pixels, steps, metadata)
            # What stands at a video's end is overwritten by the next chunk.
            features[start : start + len(part)] = part
            start += num_tokens
    if features is None:
        raise RuntimeError(f"{os.fspath(video)} gave no frames.")
    reduced = (ReducedAttention.joined(tower),) if tower else None
    return EncodedVideos(((steps, height, width),), (features,), settings, reduced, (metadata,))


def prefetched(items: Iterable[Item], depth: int = 1) -> Iterator[Item]:
    """Yield the same items, made by a thread that is at most `depth` of them ahead; an error there is raised here. Rules of the caller's block hold there.

    Closing the generator ends the thread, whatever it waits for.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(is_item: bool, value: Any) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((is_item, value), timeout=0.05)
                return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(True, item):
                    break
            else:
                put(False, None)
        except BaseException as error:  # raised in the consumer
            put(False, error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(produce,), name="decode-ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stopped.set()
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()
