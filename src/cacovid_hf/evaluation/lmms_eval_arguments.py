"""What lmms-eval's tasks hand to a model: generation arguments and videos, as this package takes them."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

_STOPS = ("until", "stop_sequences")
_OF_NO_TASK = "\n\n"  # what lmms-eval gives to every task that names nothing, and its own models skip


def generation_options(
    given: Mapping[str, Any], max_new_tokens: int
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Sort a task's generation arguments.

    Args:
        given: as the task has them, or lmms-eval for it.
        max_new_tokens: where the task does not say.

    Returns:
        Arguments of `generate`, texts that end an answer, and arguments that nothing is done with. A blank line ends none.
    """
    options, stops = dict(given), []
    for name in _STOPS:
        texts = options.pop(name, None) or []
        stops += [text for text in ([texts] if isinstance(texts, str) else texts) if text and text != _OF_NO_TASK]
    options.setdefault("max_new_tokens", options.pop("max_gen_toks", None) or max_new_tokens)
    known = vars(GenerationConfig())
    unserved = {name: options.pop(name) for name in [*options] if name not in known}
    temperature = options.get("temperature")
    warm = temperature is None or temperature > 0
    options["do_sample"] = warm and bool(options.get("do_sample", temperature is not None))
    for name in () if options["do_sample"] else ("temperature", "top_p", "top_k"):
        options.pop(name, None)
    return options, stops, unserved


def video_and_times(part: Mapping[str, Any]) -> tuple[Any, float | None, float | None]:
    """Return the video of a part of a message, and from which second to which it goes; lmms-eval writes both in two ways.

    Raises:
        ValueError: a video in a mapping that names none.
    """
    video = part.get("url")
    if not isinstance(video, Mapping):
        return video, part.get("start_time"), part.get("end_time")
    named = video.get("path") or video.get("url")
    if named is None:
        raise ValueError(f"A video is {dict(video)!r}: give its path or url.")
    return named, video.get("video_start"), video.get("video_end")
