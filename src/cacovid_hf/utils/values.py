"""Values that come out of files of others: what counts as text, and how a value is shown in a message."""

import json
import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_MAX_DEPTH = 64


def text_of(value: Any, name: str) -> str:
    """Return a text, or a number as a text.

    Args:
        value: what a file has.
        name: of the value, for messages.

    Raises:
        ValueError: neither text nor a finite number, or text with half of a character.
    """
    if not isinstance(value, (str, Real)) or is_missing(value):
        raise ValueError(f"{name} ({shown(value)}) is not a text: give a text or a number.")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} ({shown(text)}) has half of a character, a lone surrogate: correct the text.")
    return text


def is_missing(value: Any) -> bool:
    """Whether a place of a table has no value: None, or a number that is not finite and stands for it."""
    return value is None or (isinstance(value, Real) and bool(value != value or value in (float("inf"), -float("inf"))))


def shown(value: Any) -> str:
    """Return a value for a message: about 80 characters at most, without line breaks."""
    return _SHORT.repr(value)


def shortened(text: str, length: int = 300) -> str:
    """Return a text for a message, its middle left out if it is longer than `length` characters, such as a file in base64."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-(length // 2 - 3) :]}"


def check_depth(value: Any) -> None:
    """Refuse what is nested so deep that walking it could end the program.

    Raises:
        ValueError: more than 64 levels.
    """
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        parts = [part for part in level if isinstance(part, (Mapping, list, tuple))]
        level = [inner for part in parts for inner in (part.values() if isinstance(part, Mapping) else part)]
        depth += 1


def fault_of_line(error: Exception) -> str:
    """Return what is wrong with one line of JSON, without the number that the parser gives it."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.colno}"
    return one_line(error)


def one_line(error: Exception | str) -> str:
    """Return a message on one line that any file and any terminal takes."""
    return " ".join(str(error).encode("utf-8", "backslashreplace").decode().split())
