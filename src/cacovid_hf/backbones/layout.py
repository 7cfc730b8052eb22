"""Which placeholders of a batch of prompts belong to which video, and which words stand around its frames."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..prompt import VideoSpan

Grid = tuple[int, int, int]
# Ids in front and behind, at most so many, among which the words of a frame are looked for.
_REACH = 64


def find_videos(is_video: Tensor, grids: Sequence[Grid], trailing: int) -> list[VideoSpan]:
    """Share the placeholders out among the videos, in order.

    Args:
        is_video: bool `(B, L)` on the CPU, where placeholders of videos stand.
        grids: `(T, h, w)` of every video.
        trailing: placeholders at the end of each that are not video tokens.

    Raises:
        ValueError: placeholders and grids do not fit.
    """
    sizes = [t * h * w for t, h, w in grids]
    expected, found = sum(sizes) + trailing * len(sizes), int(is_video.sum())
    if expected != found:
        raise ValueError(
            f"The prompt has {found} video placeholders, the pixel inputs of {len(sizes)} video(s) stand for {expected}: make "
            "both with one call of the processor, one video input for every video in the messages."
        )
    spans: list[VideoSpan] = []
    for row, of_row in enumerate(is_video):
        places = of_row.nonzero()[:, 0]
        while len(places):
            number = len(spans)
            end = sizes[number] + trailing
            if len(places) < end:
                raise ValueError(
                    f"Row {row} of the prompt has {len(places)} placeholders left for video {number}, which needs {end}: a video must lie "
                    "in one row. Make the batch with one call of the processor."
                )
            spans.append(VideoSpan(row, grids[number], places[: sizes[number]]))
            places = places[end:]
    return spans


def last_places(spans: Sequence[VideoSpan], is_video: Tensor, valid: Tensor) -> Tensor:
    """Return the place of every prompt's last token, int64 `(B,)`, where the answer is read.

    Args:
        spans: of the videos.
        is_video: bool `(B, L)` on the CPU.
        valid: bool `(B, L)` on the CPU, false at padding.

    Raises:
        ValueError: a video under padding, or at a prompt's end.
    """
    if bool((is_video & ~valid).any()):
        raise ValueError("attention_mask is 0 at video placeholders: mask padding only, or leave it out.")
    last = valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
    for span in spans:
        if span.positions[-1] == last[span.row]:
            raise ValueError(
                f"Row {span.row} of the prompt ends inside a video, and the answer is read at its last token: put the question after "
                "the video and use add_generation_prompt=True."
            )
    return last


def with_words(
    spans: Sequence[VideoSpan],
    input_ids: Tensor,
    last: Tensor,
    around: Callable[[list[int], list[int]], tuple[int, int]],
    before_first: Callable[[list[int], list[int]], int],
) -> list[VideoSpan]:
    """Return the spans with the places of their frames' words.

    Args:
        spans: of the videos.
        input_ids: `(B, L)` on the CPU.
        last: `(B,)`, see `last_places`.
        around: `Family.num_words_around` of a config.
        before_first: `Family.num_words_before_first` of a config.
    """
    found: list[VideoSpan] = []
    for span in spans:
        former = next((video for video in reversed(found) if video.row == span.row), None)
        start = 0 if former is None else int(former.positions[-1]) + 1
        ids, stop = input_ids[span.row].tolist(), int(last[span.row])
        found.append(_with_words(span, ids, start, stop, around, before_first))
    return found


def _with_words(
    span: VideoSpan,
    ids: list[int],
    start: int,
    stop: int,
    around: Callable[[list[int], list[int]], tuple[int, int]],
    before_first: Callable[[list[int], list[int]], int],
) -> VideoSpan:
    """Of one video of a row of ids, whose places from `start` and before `stop` may be words."""
    places, frames = [], []
    firsts = span.positions[:: span.tokens_per_frame].tolist()
    lasts = span.positions[span.tokens_per_frame - 1 :: span.tokens_per_frame].tolist()
    for frame, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        begin = lasts[frame - 1] + 1 if frame else start
        end = firsts[frame + 1] if frame + 1 < len(firsts) else stop
        front = ids[max(begin, first - _REACH) : first]
        before, behind = around(front, ids[last + 1 : end][:_REACH])
        if not frame:
            before = before_first(front, ids[last + 1 : end] if len(firsts) > 1 else [])
        found = [*range(first - before, first), *range(last + 1, last + 1 + behind)]
        places += found
        frames += [frame] * len(found)
    return replace(span, word_places=torch.tensor(places).long(), word_frames=torch.tensor(frames).long())
