"""Options of multiple choice in every form in which data sets give them, and the letter of the right one."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from .answer_tags import boxed, final_answer, plain_characters
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
_LETTER_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_STATED = re.compile(
    r"(?:the\s+)?(?:correct\s+|right\s+|final\s+)?(?:answer|option|choice)(?:\s+is)?[\s:]*[\W_]*([A-Za-z])[\W_]*",
    re.IGNORECASE,
)
_TEXT_NAMES = ("text", "value", "content", "option", "choice", "answer")
_LABEL_NAMES = ("label", "letter", "key", "id", "index")


def letters(count: int) -> str:
    """The labels of `count` options: `"ABCD"` for 4.

    Raises:
        ValueError: fewer than 2 options or more than 26.
    """
    if not 2 <= count <= len(ascii_uppercase):
        raise ValueError(f"A question has {count} options: multiple choice needs 2 to {len(ascii_uppercase)}.")
    return ascii_uppercase[:count]


def read_options(options: Any) -> dict[str, str]:
    """The texts of options by their letters, in order.

    Args:
        options: texts, with or without letters (`"A. red"`); texts by letter or by number; dicts of a label and a text; lists of both
            (`{"label": [...], "text": [...]}`); or any of these as JSON, or one per line. Empty places of a table (None) are left out.

    Returns:
        Texts without letters. Letters come from the options if all of them have one, else from their order.

    Raises:
        ValueError: not options, fewer than 2 or more than 26.
    """
    if isinstance(options, str):
        options = _from_text(options)
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
    texts = [text_of(item, f"options[{place}]").strip() for place, item in enumerate(items)]
    alphabet = letters(len(texts))
    return _by_their_labels(texts) or dict(zip(alphabet, texts, strict=True))


def have_letters(options: Any) -> bool:
    """Whether options that `read_options` takes bring their letters along, rather than get them by their order."""
    if isinstance(options, str):
        options = _from_text(options)
    if isinstance(options, Mapping):
        return True
    items = [item for item in options if not is_missing(item)]
    return all(isinstance(item, Mapping) for item in items) or bool(_by_their_labels([str(item) for item in items]))


def right_letter(answer: Any, options: Mapping[str, str], prefer: str | None = None) -> str:
    """The letter of the option that a data set calls right.

    The answer is the option's text, its letter (`b`, `(B)`, `Option B`) or both (`B. red`), maybe in `<answer>` tags or `\\boxed{}`. A text counts that
    differs only in capitals, white space, the width of its characters, quotes or a full stop at its end. Nothing else is guessed. Of options
    with equal texts the first one counts, as in `option_letters.extract_choice`.

    Args:
        answer: a text or a number.
        options: texts by letter, as `read_options` gives them.
        prefer: `"letter"` or `"text"`: what counts if the answer is the letter of one option and the text of another; None: neither.

    Raises:
        ValueError: the answer is not an option, or may be two of them.
    """
    text = final_answer(text_of(answer, "the answer"))
    text = boxed(text) or text
    said = f"the answer {shown(answer)}"
    by_text = [letter for letter, option in options.items() if option == text]
    plain = plain_characters(text).strip()
    alone = _LETTER_ALONE.fullmatch(plain) or _STATED.fullmatch(plain)
    by_letter = [alone[1].upper()] if alone and alone[1].upper() in options else []
    if by_text and by_letter and options[by_text[0]] != options[by_letter[0]]:
        if prefer is None:
            raise ValueError(
                f"{said} is the letter of option {by_letter[0]} and the text of option {by_text[0]}: give both, as '{by_text[0]}. {text}'."
            )
        return first_alike((by_letter if prefer == "letter" else by_text)[0], options)
    if found := by_text or by_letter:
        return first_alike(found[0], options)
    key = comparable(text)
    alike = [letter for letter, option in options.items() if key and comparable(option) == key]
    if len({options[letter] for letter in alike}) > 1:
        raise ValueError(f"{said} fits the options {' and '.join(alike)} alike: give the letter.")
    if alike:
        return alike[0]
    letter, following = split_label(text)
    if letter in options and comparable(following) == comparable(options[letter]):
        return first_alike(letter, options)
    listed = "; ".join(f"{letter}. {option}" for letter, option in options.items())
    raise ValueError(
        f"{said} is not an option ({listed if len(listed) <= 160 else f'{listed[:157]}...'}): give an option's letter or its text."
    )


def index_letter(index: Any, options: Mapping[str, str], first: int = 0) -> str:
    """The letter of the option at a place, which a data set counts from `first`.

    Raises:
        ValueError: not a whole number, or past the options.
    """
    try:
        place = int(index) - first
        if isinstance(index, bool) or place != float(index) - first:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the answer {shown(index)} is not the number of an option: give a whole number.") from None
    if not 0 <= place < len(options):
        raise ValueError(f"the answer {shown(index)} is not an option: there are {len(options)}, counted from {first}.")
    return first_alike(list(options)[place], options)


def split_label(text: str) -> tuple[str, str]:
    """The letter that a text begins with as a label, and what follows it: `B. a dog` -> `("B", "a dog")`; without one, `""` and the text."""
    label = _LABEL.match(text)
    return (_letter_of(label), text[label.end() :].strip()) if label else ("", text)


def first_alike(letter: str, options: Mapping[str, str]) -> str:
    """The first letter whose text is that of `letter`: who chooses one of two equal texts has chosen both."""
    return next(other for other, text in options.items() if text == options[letter])


def comparable(text: str) -> str:
    """A text as it is compared: without capitals, runs of white space, the width of characters, quotes around it and full stops at its end."""
    text = " ".join(plain_characters(text).casefold().split())
    while text and (stripped := text.strip(" \"'`\u2018\u2019\u201c\u201d").rstrip(".")) != text:
        text = stripped
    return text


def _from_text(options: str) -> Any:
    """The options in a string: JSON, or one per line."""
    text = options.strip()
    if text[:1] in ("[", "{"):
        try:
            read = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            if isinstance(read, (list, dict)):
                return read
    return [line for line in text.splitlines() if line.strip()]


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
            texts_by[letter] = text_of(options[key], f"option {letter}").strip()
    elif all(match and match[2] for match in keys.values()):
        numbers = {int(match[2]): key for key, match in keys.items() if match}
        if len(numbers) < len(keys) or sorted(numbers) != list(range(min(numbers), min(numbers) + len(numbers))):
            raise ValueError(f"options are numbered {', '.join(map(str, numbers))}: number them in a row.")
        ordered = [text_of(options[numbers[number]], f"option {number}").strip() for number in sorted(numbers)]
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
