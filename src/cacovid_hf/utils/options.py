"""Options of multiple choice in every form in which data sets give them."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase, whitespace
from typing import Any

from .answer_tags import INVISIBLE, plain_characters
from .values import is_missing, shown, text_of

_FULL_WIDTH_LETTERS = "\uff21-\uff3a\uff41-\uff5a"
_LETTER = f"[A-Za-z{_FULL_WIDTH_LETTERS}]"
# "A. red", "(a) red", "A: red", "[A] red", "A - red", and their full-width forms.
_LABEL = re.compile(
    rf"\s*(?:[(\[{{\uff08\uff3b\u3010]\s*({_LETTER})\s*[)\]}}\uff09\uff3d\u3011][.:,]?"
    rf"|({_LETTER})\s*[.):,;\]\uff0e\uff09\uff1a\uff0c\uff1b\u3001\u3002]|({_LETTER})\s*[-\u2013\u2014](?=\s))\s*"
)
_LETTER_AND_SPACE = re.compile(rf"\s*({_LETTER})\s+")
_KEY = re.compile(r"(?:options?|choices?|answers?)?[\s_.(-]*(?:([A-Za-z])|(\d{1,2}))[\s.):]*", re.IGNORECASE)
# A letter within a line, each mark on its own: of "(A) vitamin B. (B) none" the brackets are the labels.
_INLINE_LABELS = tuple(
    re.compile(rf"(?:(?<=[\s,;|])|^){label}(?=\s*\S)")
    for label in (
        rf"[(\uff08]({_LETTER})[)\uff09][.:]?",
        rf"\[({_LETTER})\]",
        rf"({_LETTER})[)\uff09]",
        rf"({_LETTER})[.\uff0e\u3001]",
        rf"({_LETTER})[:\uff1a]",
        rf"({_LETTER})\s*[-\u2013\u2014](?=\s)",
    )
)
_EMPHASIS = str.maketrans("*_", "  ")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_ARRAY = re.compile(rf"""\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]""")
_PRINTED_ARRAY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_LONGEST_LITERAL = 1 << 20  # characters
_TEXT_NAMES = ("text", "value", "content", "option", "choice", "answer")
_LABEL_NAMES = ("label", "letter", "key", "id", "index")


def letters(count: int) -> str:
    """Return the labels of `count` options: `"ABCD"` for 4.

    Raises:
        ValueError: fewer than 2 options or more than 26.
    """
    if not 2 <= count <= len(ascii_uppercase):
        raise ValueError(f"A question has {count} options: multiple choice needs 2 to {len(ascii_uppercase)}.")
    return ascii_uppercase[:count]


def read_options(options: Any) -> dict[str, str]:
    """Return the texts of options by their letters, in order.

    Args:
        options: texts, with or without letters (`"A. red"`); texts by letter or by number; dicts of a label and a text; lists of both
            (`{"label": [...], "text": [...]}`); or any of these as JSON or as Python prints it, one per line, or with letters on one line
            (`"A. red B. green"`). Empty places of a table (None) are left out.

    Returns:
        Texts without letters. Letters come from the options if all of them have one, else from their order.

    Raises:
        ValueError: not options, fewer than 2 or more than 26.
    """
    options = unpacked(options)
    if isinstance(options, Mapping):
        return _from_mapping(options)
    if not isinstance(options, Iterable) or isinstance(options, bytes):
        raise ValueError(
            f"options={shown(options)} is of type {type(options).__name__}: give a list of texts, or texts by letter."
        )
    items = list(options)
    while items and is_missing(items[-1]):
        items.pop()
    if items and all(isinstance(item, Mapping) for item in items):
        return _from_mapping(dict(_labelled_item(item, place) for place, item in enumerate(items)))
    texts = [_trimmed(text_of(item, f"options[{place}]")) for place, item in enumerate(items)]
    alphabet = letters(len(texts))
    return _by_their_labels(texts) or dict(zip(alphabet, texts, strict=True))


def have_letters(options: Any) -> bool:
    """Whether options that `read_options` takes bring their letters along, rather than get them by their order."""
    options = unpacked(options)
    if isinstance(options, Mapping):
        return True
    items = [item for item in options if not is_missing(item)]
    return all(isinstance(item, Mapping) for item in items) or bool(_by_their_labels([str(item) for item in items]))


def index_letter(index: Any, options: Mapping[str, str], first: int = 0) -> str:
    """Return the letter of the option at a place, which a data set counts from `first`.

    Raises:
        ValueError: not a whole number, or past the options.
    """
    try:
        place = int(float(index)) - first
        if isinstance(index, bool) or place != float(index) - first:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the answer {shown(index)} is not the number of an option: give a whole number.") from None
    if not 0 <= place < len(options):
        raise ValueError(f"the answer {shown(index)} is not an option: there are {len(options)}, counted from {first}.")
    return first_alike(list(options)[place], options)


def split_label(text: str) -> tuple[str, str]:
    """Return the letter that a text begins with as a label, and what follows it: `B. a dog` -> `("B", "a dog")`; without one, `""` and the text."""
    label = _LABEL.match(text)
    return (_letter_of(label), text[label.end() :].strip()) if label else ("", text)


def end_of_list(text: str, least: int) -> int:
    """Where the text of the last option begins in a text that lists options by letter from A on, one per line or all on one line.

    0 if it does not begin with a list of at least `least` options.
    """
    plain = text.translate(_EMPHASIS)
    start = len(plain) - len(plain.lstrip())
    kind = next((kind for kind in _INLINE_LABELS if kind.match(plain, start)), None)
    end = number = 0
    for label in kind.finditer(plain, start) if kind else ():
        goes_on = label[1].upper() == ascii_uppercase[number] and "\n" not in plain[end : label.start()].strip()
        if not goes_on:
            break
        end, number = label.end(), number + 1
    return end if number >= least else 0


def first_alike(letter: str, options: Mapping[str, str]) -> str:
    """Return the first letter whose text is that of `letter`: who chooses one of two equal texts has chosen both."""
    return next(other for other, text in options.items() if text == options[letter])


def comparable(text: str) -> str:
    """Return a text as it is compared: without capitals, runs of white space, the width of characters, quotes around it and full stops at its end."""
    text = " ".join(plain_characters(text).casefold().split())
    while text and (stripped := text.strip(" \"'`\u2018\u2019\u201c\u201d").rstrip(".")) != text:
        text = stripped
    return text


def unpacked(options: Any) -> Any:
    """Options that are one text, or a list of one text, as the list or dict that it holds; any other as they are."""
    if isinstance(options, str):
        return options_in(options)
    if isinstance(options, (list, tuple)) and len(options) == 1 and isinstance(options[0], str):
        parts = options_in(options[0])
        return parts if len(parts) > 1 else options
    return options


def options_in(text: str) -> Any:
    """Return the options in a string: JSON, what Python prints of a list or an array of texts, one per line, or behind their letters on one line.

    One option is returned for a line without letters.

    Raises:
        ValueError: a list that cannot be read.
    """
    text = _trimmed(text)
    lines = [line for line in text.splitlines() if line.strip()]
    if parts := _split_at_labels(text, lines):
        return parts
    if text[:1] not in ("[", "{") or len(lines) > 1:
        return lines if (read := _literal(text)) is None else read
    if (read := _literal(text)) is None:
        raise ValueError(f"options={shown(text)} are not a list that can be read: write them as JSON, or one per line.")
    return read


def _literal(text: str) -> list | dict | None:
    """Return what JSON or Python reads as a list or dict; numpy leaves the commas out."""
    if printed := _PRINTED_ARRAY.fullmatch(text):
        text = printed[1]
    if not text.startswith(("[", "{", "(")) or len(text) > _LONGEST_LITERAL:
        return None
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    if _ARRAY.fullmatch(text):
        readers = (lambda array: [ast.literal_eval(item) for item in _QUOTED.findall(array)],)
    for reader in readers:
        try:
            read = reader(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(read, (list, tuple, dict)):
            return list(read) if isinstance(read, tuple) else read
    return None


def _split_at_labels(text: str, lines: Sequence[str]) -> list[str]:
    """Texts behind letters that stand on one line, "A. red B. green"; empty if it is not clear where each begins."""
    if len(lines) > 1 and _by_their_labels(lines):
        return []
    kind = next((kind for kind in _INLINE_LABELS if kind.match(text)), None)
    if kind is None:
        return []
    places = list(kind.finditer(text))
    named = [plain_characters(place[1]) for place in places]
    if (
        named not in (list(ascii_uppercase[: len(named)]), list(ascii_uppercase.lower()[: len(named)]))
        or len(named) < 2
    ):
        return []
    ends = [*(place.start() for place in places[1:]), len(text)]
    parts = [text[place.start() : end].strip().rstrip(",;|") for place, end in zip(places, ends, strict=True)]
    return parts if _by_their_labels(parts) else []


def _trimmed(text: str) -> str:
    """Return a text without white space and invisible characters around it."""
    return text.strip(f"{INVISIBLE}{whitespace}\u3000\xa0")


def _from_mapping(options: Mapping[Any, Any]) -> dict[str, str]:
    columns = {str(name).lower(): value for name, value in options.items()}
    for name in _TEXT_NAMES:
        if (given := columns.get(name)) is not None and isinstance(given, Iterable) and not isinstance(given, str):
            labels = next((columns[name] for name in _LABEL_NAMES if columns.get(name) is not None), None)
            return read_options(given if labels is None else dict(zip(labels, given, strict=True)))
    options = {key: value for key, value in options.items() if not is_missing(value)}
    keys = {key: _KEY.fullmatch(str(key)) for key in options}
    texts_by: dict[str, str] = {}
    if all(match and match[1] for match in keys.values()):
        for key, match in sorted(keys.items(), key=lambda item: item[1][1].upper() if item[1] else ""):
            letter = match[1].upper() if match else ""
            if letter in texts_by:
                raise ValueError(f"options have the letter {letter} twice: give each option its own.")
            texts_by[letter] = _trimmed(text_of(options[key], f"option {letter}"))
    elif all(match and match[2] for match in keys.values()):
        numbers = {int(match[2]): key for key, match in keys.items() if match}
        if len(numbers) < len(keys) or sorted(numbers) != list(range(min(numbers), min(numbers) + len(numbers))):
            raise ValueError(f"options are numbered {', '.join(map(str, numbers))}: number them in a row.")
        ordered = [_trimmed(text_of(options[numbers[number]], f"option {number}")) for number in sorted(numbers)]
        texts_by = dict(zip(letters(len(ordered)), ordered, strict=True))
    else:
        raise ValueError(f"options have the names {shown(list(options))}: name them A, B, C and so on.")
    letters(len(texts_by))
    labelled = _by_their_labels(list(texts_by.values()))
    return labelled if list(labelled) == list(texts_by) else texts_by


def _labelled_item(item: Mapping[Any, Any], place: int) -> tuple[Any, Any]:
    """Label and text of an option that is a dict."""
    columns = {str(name).lower(): value for name, value in item.items()}
    if len(columns) == 1:
        ((label, text),) = columns.items()
        return (ascii_uppercase[place] if place < 26 else place, text) if label in _TEXT_NAMES else (label, text)
    names = [name for name in _TEXT_NAMES if columns.get(name) is not None]
    labels = [name for name in (*_LABEL_NAMES, "option", "choice") if columns.get(name) is not None]
    if not names:
        raise ValueError(f"options[{place}]={shown(dict(item))} has no text: give it as 'text'.")
    own = next((columns[name] for name in labels if name != names[0]), None)
    return (ascii_uppercase[place] if place < 26 else place) if own is None else own, columns[names[0]]


def _by_their_labels(texts: Sequence[str]) -> dict[str, str]:
    """Texts by the letters that they begin with; empty if these are not the first letters of the alphabet, one for each text."""
    for pattern in (_LABEL, _LETTER_AND_SPACE):
        found = [pattern.match(text) for text in texts]
        if len(texts) < 2 or not all(
            match and text[match.end() :].strip() for match, text in zip(found, texts, strict=True)
        ):
            continue
        named = [_letter_of(match) for match in found if match]
        # Without a mark behind them, "A car" and "B movie" are letters only in their order.
        if (sorted(named) if pattern is _LABEL else named) == list(ascii_uppercase[: len(texts)]):
            by_letter = dict(
                zip(named, (t[m.end() :].strip() for t, m in zip(texts, found, strict=True) if m), strict=True)
            )
            return dict(sorted(by_letter.items()))
    return {}


def _letter_of(match: re.Match[str]) -> str:
    return plain_characters(next(group for group in match.groups() if group)).upper()
