"""How many frames of a video file are read: what the server's `media_io_kwargs` say, and what those of a request may change of it."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.values import shown

NUM_FRAMES, FPS = "num_frames", "fps"
LOADER = "video_backend"
"""With this setting a server chooses who reads its videos."""
PACKAGE = "cacovid"
"""Its value where this package does."""


@dataclass(frozen=True)
class FrameLimits:
    """Limits of one video.

    Attributes:
        num_frames: at most so many frames, at least 1.
        fps: at most so many frames a second, over 0; `math.inf`: no such limit.
    """

    num_frames: int = 32
    fps: float = math.inf


def limits_of_server(given: Mapping[str, Any]) -> FrameLimits:
    """Return the limits that a server sets, with the defaults for what it leaves out.

    Args:
        given: its `media_io_kwargs` of videos, with or without the name of the loader. `fps` is None or -1 where there is no such limit.

    Raises:
        ValueError: an unknown setting, or a value that makes no sense.
    """
    _check_names(name for name in given if name != LOADER)
    limits = FrameLimits(given.get(NUM_FRAMES, FrameLimits.num_frames), given.get(FPS, FrameLimits.fps))
    if not _is_count(limits.num_frames):
        raise _refused(NUM_FRAMES, limits.num_frames, "an integer of at least 1")
    if limits.fps in (None, -1, math.inf):
        return FrameLimits(limits.num_frames)
    if not _is_rate(limits.fps):
        raise _refused(FPS, limits.fps, "a number over 0, or -1 for no limit")
    return limits


def limits_of_request(given: Mapping[str, Any], server: FrameLimits) -> dict[str, Any]:
    """Return what a request gives, which is never more than what the server's limits allow.

    Args:
        given: its `media_io_kwargs` of videos.
        server: what the server sets.

    Raises:
        ValueError: an unknown setting, a value that makes no sense, or one over the server's.
    """
    _check_names(given)
    count, rate = given.get(NUM_FRAMES, 1), given.get(FPS, server.fps)
    if not _is_count(count) or count > server.num_frames:
        raise _refused(NUM_FRAMES, count, f"an integer from 1 to {server.num_frames}, the server's own")
    if FPS in given and not (_is_rate(rate) and rate <= server.fps):
        most = "" if math.isinf(server.fps) else f", at most {server.fps:g}, the server's own"
        raise _refused(FPS, rate, f"a number over 0{most}")
    return dict(given)


def frames_to_plan(server: FrameLimits, room: int, num_videos: int) -> int:
    """Return for how many frames of each video memory is planned at the start: as many as a request may have, as far as a prompt has room.

    Args:
        server: what the server sets.
        room: frames of the largest size that fit the longest prompt.
        num_videos: of that prompt.
    """
    return max(1, min(server.num_frames, room // max(num_videos, 1)))


def _check_names(given: Iterable[str]) -> None:
    if others := sorted(name for name in given if name not in (NUM_FRAMES, FPS)):
        raise ValueError(f"media_io_kwargs has {shown(others[0])} for videos: give {NUM_FRAMES} and {FPS} alone.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _refused(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"media_io_kwargs has {name}={shown(value)} for videos: give {wanted}.")
