"""Names and types of written settings: what is wrong with one, and the remedy."""

from collections.abc import Iterable, Mapping
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .names import nearest


def check_names(content: Any, known: Iterable[str], place: str) -> None:
    """Make sure that the names of a mapping are known.

    Raises:
        ValueError: no mapping, or a name that is not known; the nearest one is said.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}: give names and values.")
    known = list(known)
    for name in content:
        if name not in known:
            remedy = nearest(name, known, f"known are {', '.join(known) or 'none'}.")
            raise ValueError(f"{place} has no setting {name!r}: {remedy}")


def check_type(value: Any, hint: Any, name: str) -> None:
    """Make sure that a setting is what its annotation says: a plain type, an enumeration, a list, a dict, or one of several.

    Raises:
        ValueError: it is not.
    """
    if not _fits(value, hint):
        raise ValueError(f"{name}={value!r} {_complaint(value, hint)}.")


# In the order in which a remedy is chosen where several are possible.
_REMEDIES = {
    bool: "Give true or false",
    int: "Give a whole number",
    float: "Give a number",
    list: "Give a list, in [brackets]",
    dict: "Give names and values",
    str: "Give text (in quotes, if it would be read as something else)",
}


def _complaint(value: Any, hint: Any) -> str:
    """Return what is wrong with a value, and what to do."""
    kinds = _alternatives(hint)
    if isinstance(value, str) and (choices := _choices(kinds)):
        return f"is unknown. Choose one of {', '.join(choices)}"
    plain = [get_origin(kind) or kind for kind in kinds]
    remedy = next((words for kind, words in _REMEDIES.items() if kind in plain), "Leave it out")
    if value is None:
        return f"is not a value. {remedy}, or leave it out"
    if isinstance(value, str) and {bool, int, float} & set(plain):
        return f"is text. {remedy.replace('whole ', '')}, without quotes"
    if int in plain and isinstance(value, float) and value.is_integer():
        remedy += f", such as {int(value)}"
    said = getattr(hint, "__name__", hint) if get_origin(hint) is None else str(hint).replace("typing.", "")
    return f"is not of type {said}. {remedy}"


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin is None:
        if isinstance(hint, type) and issubclass(hint, Enum):
            return isinstance(value, str) and value in _choices((hint,))
        # Whole numbers are floats too; True is neither.
        kinds = (float, int) if hint is float else hint
        return isinstance(value, kinds) and (hint not in (float, int) or not isinstance(value, bool))
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(one, parts[0]) for one in value)
    if origin is dict:
        items = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_fits(key, parts[0]) and _fits(one, parts[1]) for key, one in items)
    if origin not in (Union, UnionType):
        return True  # not of a written setting of ours
    if isinstance(value, str) and (choices := _choices(parts)):
        return value in choices  # an enumeration or any text, says transformers, and refuses other text later
    return any(_fits(value, part) for part in parts)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _choices(kinds: tuple[Any, ...]) -> list[str]:
    """Return the values of the enumerations among some types."""
    return [one.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for one in kind]
