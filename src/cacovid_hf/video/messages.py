"""One walk over chat messages in front of the template: every part and key is followed or refused, so that nothing is dropped in silence.

Templates and processors of transformers look for the keys that they know and pass over the others. A video under another name would be
answered without, and a setting beside a video would change nothing.
"""

import io
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..utils.names import nearest
from ..utils.values import text_of
from .addresses import shown

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".flv",
    ".ts",
    ".m2ts",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".3gp",
    ".ogv",
)
_VIDEO_KEYS = ("video", "path", "url", "video_url", "input_video", "data")
_IMAGE_KEYS = ("image", "path", "url", "image_url", "input_image", "base64")
_TEXT_KEYS = ("text",)
_KINDS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
}
_KEYS = {"text": _TEXT_KEYS, "video": _VIDEO_KEYS, "image": _IMAGE_KEYS}
# Marks of clients that change nothing here, by kind of part.
_MARKS = {
    "text": {"cache_control", "annotations", "logprobs"},
    "video": {"cache_control", "format"},
    "image": {"cache_control", "format"},
}
PIXEL_BOUNDS = ("min_pixels", "max_pixels")


@dataclass(frozen=True)
class BoundsRefused:
    """Why a model does not follow `PIXEL_BOUNDS`, and which setting of its processor bounds frames instead."""

    because: str
    instead: str = "size"


ONE_SIZE = BoundsRefused("this model sees every frame in one size")
ALL_FRAMES = BoundsRefused("this model bounds the pixels of all frames of a video together")
# Keys beside a video: the settings of ours that they stand for.
_SETTINGS = {
    "fps": "max_fps",
    "max_fps": "max_fps",
    "nframes": "exact_frames",
    "num_frames": "exact_frames",
    "max_frames": "num_frames",
    "video_start": "start",
    "video_end": "end",
    **{name: name for name in PIXEL_BOUNDS},
}
_SIZE = "size in processor_kwargs"
_OF_SIZE = ("total_pixels", "resized_height", "resized_width", "size")
_REFUSED = {
    **dict.fromkeys(_OF_SIZE, f"give max_pixels beside it, or {_SIZE}"),
    "min_frames": "give nframes for an exact number",
    "sample_fps": "give video_metadata in processor_kwargs",
    "raw_fps": "give video_metadata in processor_kwargs",
    "video_metadata": "give it in processor_kwargs",
    "do_sample_frames": "give it in processor_kwargs",
    **dict.fromkeys(("start", "start_time"), "give seconds as video_start"),
    **dict.fromkeys(("end", "end_time"), "give seconds as video_end"),
    **dict.fromkeys(("frame_rate", "video_fps"), "give fps"),
    "detail": "leave it out",
    "frames": "give decoded frames as video, or their number as nframes",
}
# Settings that stand beside one video alone, and those of the answer.
_OF_A_VIDEO = ("nframes", "max_frames", "video_start", "video_end")
_OF_THE_ANSWER = ("retention_ratio", "compressor")
_OF_A_CALL = ("size", "video_metadata", "do_sample_frames")

# What belongs into a part, and would be passed over in a message.
_BESIDE_CONTENT = {*_KINDS, *_VIDEO_KEYS, *_IMAGE_KEYS, *_SETTINGS, *_REFUSED, "videos", "images", "media"} - {"text"}

_ROLES = ("system", "user", "assistant", "tool", "developer", "function")
# What a message without content may have: the tools that an assistant called, or nothing.
_MESSAGE_KEYS = {
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
    "refusal",
    "function_call",
}


@dataclass(frozen=True)
class ClipSettings:
    """Which frames of one video are shown, and how large. None is the processor's own setting, or no bound.

    Attributes:
        num_frames: at most so many frames.
        max_fps: at most so many frames a second.
        start: seconds; frames from there on.
        end: seconds; frames before.
        min_pixels: of a frame, at least.
        max_pixels: of a frame, at most.
    """

    num_frames: int | None = None
    max_fps: float | None = None
    start: float | None = None
    end: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """Those that choose frames, as arguments of `sample_frames`."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in PIXEL_BOUNDS}

    @property
    def pixels(self) -> dict[str, int]:
        """Those that bound the size of frames."""
        return {name: value for name, value in vars(self).items() if value is not None and name in PIXEL_BOUNDS}


class VideoAddress(str):
    """The address of a video (a path or URL) with the settings that stood beside it: goes wherever a plain address goes.

    Attributes:
        settings: of this video alone.
    """

    settings: ClipSettings

    def __new__(cls, address: str, settings: ClipSettings) -> "VideoAddress":
        """Put settings beside an address."""
        made = super().__new__(cls, address)
        made.settings = settings
        return made

    def __getnewargs__(self) -> tuple[str, ClipSettings]:  # type: ignore[override]
        return str(self), self.settings


def follow_messages(
    conversation: Any, *, bounds_refused: BoundsRefused | None = None, read_picture: Callable[[str], Any] | None = None
) -> Any:
    """Write the parts of chat messages as processors and templates of transformers read them; the given messages stay as they are.

    A part may be a text, a picture or a video under the names of transformers, of OpenAI's API (`image_url`, `input_image`, `video_url`,
    `input_text`) and of qwen-vl-utils. Beside the address of a video: `fps` and `max_fps` (at most so many frames a second), `nframes` and
    `num_frames` (so many frames, if the video has them), `max_frames` (at most so many), `video_start` and `video_end` (seconds),
    `min_pixels` and `max_pixels` (of a frame). Keys whose value is None are as missing.

    Args:
        conversation: chat messages, or a batch of them.
        bounds_refused: why the processor does not follow `min_pixels` and `max_pixels` of one video; None: it does.
        read_picture: from the address of a picture to the picture; None leaves addresses for others to read.

    Returns:
        The same with parts `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}` and `{"type": "video", "video": ...}`, of which a
        video's address is a `VideoAddress` if settings stood beside it.

    Raises:
        ValueError: a part or key that is not followed; the message names it, and the nearest that is.
    """
    walk = _Walk(bounds_refused, read_picture)
    if isinstance(conversation, (str, Mapping)) or not isinstance(conversation, Iterable):
        raise ValueError(
            f"A conversation is a {type(conversation).__name__}: give a list of messages such as {{'role': 'user', 'content': ...}}."
        )
    conversation = list(conversation)
    batch = [one for one in conversation if isinstance(one, (list, tuple))]
    if not all([conversation, *batch]):
        raise ValueError("A conversation has no messages: give at least one.")
    if batch and len(batch) < len(conversation):
        raise ValueError("A batch of conversations has a message beside lists of messages: give a list of lists.")
    return [
        [walk.message(message) for message in one] if isinstance(one, (list, tuple)) else walk.message(one)
        for one in conversation
    ]


@dataclass(frozen=True)
class _Walk:
    """The walk with its settings (see `follow_messages`)."""

    bounds_refused: BoundsRefused | None
    read_picture: Callable[[str], Any] | None

    def message(self, message: Any) -> Any:
        if message is None or isinstance(message, (str, bytes, int, float, list, tuple)):
            raise ValueError(
                f"A message is a {type(message).__name__}: give {{'role': 'user', 'content': ...}}, and a batch as a list of lists of these."
            )
        if not isinstance(message, Mapping):
            return message  # an object that transformers reads itself
        for name, value in message.items():
            if value is not None and name in _OF_THE_ANSWER:
                raise ValueError(f"{name} beside a message's content is not followed: it is an argument of generate.")
            if value is not None and name in _BESIDE_CONTENT:
                raise ValueError(
                    f"The key {name!r} beside a message's content is not followed: give it in a part of the content."
                )
        role = message.get("role")
        if not isinstance(role, str) or (role not in _ROLES and role.strip().lower() in _ROLES):
            remedy = nearest(role, _ROLES, "give 'user', 'assistant' or 'system'.")
            raise ValueError(f"The role {role!r} of a message is not one: {remedy}")
        content = message.get("content")
        if content is None and (others := [name for name in message if name not in _MESSAGE_KEYS]):
            raise ValueError(f"A message has {others[0]!r} and no content: give what it says as its content.")
        if isinstance(content, Mapping):
            raise ValueError("A message's content is one part: give a list of parts, or a text.")
        if content is None:
            return dict(message)
        if isinstance(content, str):
            return {**message, "content": text_of(content, "The text of a message")}
        if not isinstance(content, (list, tuple)):
            raise ValueError(f"A message's content is a {type(content).__name__}: give a text, or a list of parts.")
        return {**message, "content": [self.part(part) for part in content]}

    def part(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": text_of(part, "The text of a message")}
        if not isinstance(part, Mapping):
            raise ValueError(f"A part of a message is a {type(part).__name__}: give a dict with a type.")
        given = {name: value for name, value in part.items() if value is not None}
        named = given.pop("type", None)
        kind = _kind_of(named, given)
        if kind == "text":
            _refuse_others(given, _MARKS[kind], kind)
            if not isinstance(given.get("text"), str):
                raise ValueError(f"A part of type {named!r} has no text: give it under the key text.")
            return {"type": "text", "text": text_of(given["text"], "The text of a message")}
        content, beside = _content_of(kind, given)
        if content is None and named != kind:
            raise ValueError(f"A part of type {named!r} has no address: give it under the key {named!r}.")
        return self.video(content, beside) if kind == "video" else self.picture(content, beside)

    def video(self, video: Any, beside: dict[str, Any]) -> dict[str, Any]:
        _refuse_lost_content(video, beside, "video")
        settings = _settings_of(beside, self.bounds_refused)
        given = settings != ClipSettings()
        if video is None or not isinstance(video, (str, os.PathLike)):
            if given:
                raise ValueError(
                    f"{', '.join(beside)} beside {'a video without an address' if video is None else 'decoded frames'} would choose nothing: "
                    "give the file's path or address, or sample the frames and give video_metadata in processor_kwargs."
                )
            if video is None:
                return {"type": "video"}
            if isinstance(video, io.IOBase):
                raise ValueError(
                    "A video is an open file: give its path, or the frames of cacovid_hf.read_video(file)."
                )
            if isinstance(video, (list, tuple)) and video and all(isinstance(one, (str, os.PathLike)) for one in video):
                addresses = [_checked_address(one, "image") for one in video]
                video = addresses if self.read_picture is None else [self.read_picture(one) for one in addresses]
            else:
                check_frames(video)
            return {"type": "video", "video": video}
        address = _checked_address(video, "video")
        return {"type": "video", "video": VideoAddress(address, settings) if given else address}

    def picture(self, picture: Any, beside: dict[str, Any]) -> dict[str, Any]:
        _refuse_lost_content(picture, beside, "image")
        detail = beside.pop("detail", "auto")
        if detail != "auto":
            raise ValueError(f"detail={detail!r} of a picture is not followed: leave it out.")
        _refuse_others(beside, set(), "image")
        if picture is None:
            return {"type": "image"}
        if not isinstance(picture, (str, os.PathLike)):
            return {"type": "image", "image": picture}
        address = _checked_address(picture, "image")
        start = address[:200].lower().lstrip()
        if start.startswith("data:video/") or (len(address) < 5000 and _suffix(address) in VIDEO_SUFFIXES):
            raise ValueError(
                f"{shown(address)} is a video in a part for a picture: give it in a part of type video or video_url."
            )
        return {"type": "image", "image": address if self.read_picture is None else self.read_picture(address)}


def _suffix(address: str) -> str:
    path = address.partition("?")[0].partition("#")[0] if "://" in address else address
    return os.path.splitext(path)[1].lower()


def _kind_of(named: Any, given: Mapping[str, Any]) -> str:
    """Return what a part is: by its type, or where it has none by the only content in it."""
    if named is None:
        kinds = [kind for kind, key in (("text", "text"), ("video", "video"), ("image", "image")) if key in given]
        if len(kinds) != 1:
            raise ValueError(
                f"A part with the keys {', '.join(given) or '(none)'} has no type: give text, image or video."
            )
        return kinds[0]
    kind = _KINDS.get(named) if isinstance(named, str) else None
    if kind is None:
        if isinstance(named, str) and "audio" in named:
            raise ValueError(f"A part of type {named!r} holds sound, which these models cannot hear: leave it out.")
        remedy = nearest(named, _KINDS, "give text, image or video.")
        raise ValueError(f"A part of type {named!r} is not followed: {remedy}")
    return kind


def _content_of(kind: str, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a part shows, and the keys beside it; contents may be nested once, as in `{"video_url": {"url": ...}}`."""
    found = [name for name in _KEYS[kind] if name in given]
    if len(found) > 1:
        raise ValueError(f"A part of type {kind} holds {' and '.join(found)}: give one of them.")
    beside = {name: value for name, value in given.items() if name not in found and name not in _MARKS[kind]}
    content = given[found[0]] if found else None
    bare = found and found[0] in ("data", "base64") and isinstance(content, str)
    if bare and not str(content)[:10].lstrip().lower().startswith("data:"):
        form = given.get("format") or ("mp4" if kind == "video" else "png")
        content = f"data:{kind}/{form};base64,{content}"
    if isinstance(content, Mapping):
        inner = {name: value for name, value in content.items() if value is not None}
        if not any(name in inner for name in _KEYS[kind]):
            raise ValueError(
                f"{found[0]} of a part of type {kind} has no url: give {{'url': ...}}, or the address itself."
            )
        if twice := sorted(set(inner) & set(beside)):
            raise ValueError(f"{', '.join(twice)} stands twice in a part of type {kind}: give it once.")
        content, nested = _content_of(kind, inner)
        return content, {**nested, **beside}
    return content, beside


def _settings_of(beside: dict[str, Any], bounds_refused: BoundsRefused | None) -> ClipSettings:
    """Return the settings beside a video.

    Raises:
        ValueError: unknown, refused, or out of range.
    """
    known = {name: key for name, key in _SETTINGS.items() if bounds_refused is None or name not in PIXEL_BOUNDS}
    for name in beside:
        if name in _REFUSED:
            raise ValueError(f"{name} beside a video is not followed: {_way_round(name, bounds_refused)}.")
        if name in PIXEL_BOUNDS and bounds_refused is not None:
            raise ValueError(
                f"{name} beside a video is not followed, because {bounds_refused.because}: {_way_round(name, bounds_refused)}."
            )
    _refuse_others(beside, set(known), "video")
    found: dict[str, Any] = {}
    for name, value in beside.items():
        setting = known[name]
        if setting in found:
            raise ValueError(f"{name}={value!r} says again what another key beside the video says: give one of them.")
        found[setting] = _checked(name, setting, value)
    exact = found.pop("exact_frames", None)
    if exact is not None:
        if "num_frames" in found:
            raise ValueError("max_frames beside a number of frames says it twice: give one of them.")
        found = {"max_fps": math.inf, **found, "num_frames": exact}
    settings = ClipSettings(**found)
    if settings.start is not None and settings.end is not None and settings.start >= settings.end:
        raise ValueError(f"video_start={settings.start} is not before video_end={settings.end}: give seconds in order.")
    check_pixel_bounds(**settings.pixels)
    return settings


def check_pixel_bounds(min_pixels: Any = None, max_pixels: Any = None) -> None:
    """Raise a `ValueError` unless each is None or a whole number of at least 1, and the smaller one is not the larger."""
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and (not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1.")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(f"min_pixels={min_pixels} is over max_pixels={max_pixels}: give a larger max_pixels.")


def _checked(name: str, setting: str, value: Any) -> Any:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if setting in ("start", "end", "max_fps"):
        if not number or value < 0 or (setting == "max_fps" and value == 0):
            raise ValueError(
                f"{name}={value!r} beside a video: give a number {'over' if setting == 'max_fps' else 'of at least'} 0."
            )
        return float(value)
    if not number or value != int(value) or value < 1:
        raise ValueError(f"{name}={value!r} beside a video: give a whole number of at least 1.")
    return int(value)


def _way_round(name: str, bounds_refused: BoundsRefused | None) -> str:
    """Return what to do instead of a setting that is refused."""
    if bounds_refused is None or name not in (*_OF_SIZE, *PIXEL_BOUNDS):
        return _REFUSED[name]
    return f"give {bounds_refused.instead} in processor_kwargs"


def check_call(given: Mapping[str, Any], *, bounds_refused: BoundsRefused | None = None) -> None:
    """Refuse settings of a whole call that processors and templates pass over.

    Args:
        given: the call's keyword arguments.
        bounds_refused: why the processor does not follow `min_pixels` and `max_pixels`; None: it does.

    Raises:
        ValueError: naming the setting and the way round.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name in _OF_A_VIDEO:
            raise ValueError(
                f"{name} of a whole call is not followed: give it beside the video in its message, or num_frames and max_fps for all videos."
            )
        if name in PIXEL_BOUNDS and bounds_refused is not None:
            raise ValueError(
                f"{name} is not followed, because {bounds_refused.because}: leave it out, or give {bounds_refused.instead} in processor_kwargs."
            )
        if name in _REFUSED and name not in _OF_A_CALL:
            raise ValueError(f"{name} of a whole call is not followed: {_way_round(name, bounds_refused)}.")
        if name in ("fps", "max_fps") and not _is_number(value):
            raise ValueError(f"{name}={value!r}: give a number over 0.")
        if name == "num_frames" and (not _is_number(value) or value != int(value)):
            raise ValueError(f"num_frames={value!r}: give a whole number of at least 1.")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_parts(conversation: list[Any]) -> list[Any]:
    """Messages with texts as parts, for templates that read nothing else."""
    return [as_parts(one) if isinstance(one, list) else _as_parts(one) for one in conversation]


def _as_parts(message: Any) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def has_plain_text(conversation: list[Any]) -> bool:
    """Whether the content of a message is a text instead of parts."""
    return any(
        has_plain_text(one)
        if isinstance(one, list)
        else isinstance(one, Mapping) and isinstance(one.get("content"), str)
        for one in conversation
    )


def check_frames(video: Any) -> None:
    """Raise a `ValueError` unless a video is decoded frames: `(T, H, W, C)` or `(T, C, H, W)`, or a list of pictures."""
    frames, dimensions = ([video], 4) if isinstance(video, (np.ndarray, Tensor)) else (video, 3)
    if not isinstance(frames, (list, tuple)) or not frames or any(_is_no_picture(frame) for frame in frames):
        raise ValueError(
            f"A video of type {type(video).__name__} is not followed: give a path, an address or decoded frames."
        )
    for frame in (frame for frame in frames if isinstance(frame, (np.ndarray, Tensor))):
        numbers = frame.dtype.kind in "buif" if isinstance(frame, np.ndarray) else not frame.is_complex()
        if not numbers or frame.ndim != dimensions or 0 in frame.shape:
            raise ValueError(
                f"Decoded frames of shape {tuple(frame.shape)} and type {frame.dtype} are not a video: give (T, H, W, 3) with T at least 1."
            )


def _is_no_picture(frame: Any) -> bool:
    return not isinstance(frame, (np.ndarray, Tensor, Image.Image))


def _checked_address(address: str | os.PathLike, kind: str) -> str:
    address = os.fspath(address)
    if not address.strip():
        raise ValueError(f"The address of a part of type {kind} is empty: give a path or an address.")
    return address


def _refuse_lost_content(content: Any, beside: Mapping[str, Any], kind: str) -> None:
    """Raise a `ValueError` if a part shows nothing and has a key that is not known: what it shows may stand there."""
    known = {*_KEYS[kind], *_MARKS[kind], *(_SETTINGS if kind == "video" else ("detail",)), *_REFUSED}
    for name in beside if content is None else ():
        if name not in known:
            remedy = nearest(name, _KEYS[kind], f"give the {kind} under the key {kind!r}.")
            raise ValueError(f"The key {name!r} of a part of type {kind} is not followed: {remedy}")


def _refuse_others(given: Mapping[str, Any], known: set[str], kind: str) -> None:
    known = {*known, *_KEYS[kind]}
    for name in given:
        if name not in known:
            remedy = nearest(name, sorted(known), "leave it out.")
            raise ValueError(f"The key {name!r} of a part of type {kind} is not followed: {remedy}")
