"""From what a model wrote to the option that it chose."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_PHRASE = re.compile(
    r"\b(?:answer|option|choice)(?:\s+(?:is|would\s+be|should\s+be))?\s*[:\uff1a]?\s*[(\[*\"']*([A-Z])(?![\w'])",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^[\s(\[*\"']*([A-Z])\s*(?:[).:,\]*\"']|$)", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_STANDING_ALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")


def letters(count: int) -> str:
    """The labels of `count` options: `"ABCD"` for 4.

    Raises:
        ValueError: fewer than 2 options or more than 26.
    """
    if not 2 <= count <= len(ascii_uppercase):
        raise ValueError(f"A question has {count} options: multiple choice needs 2 to {len(ascii_uppercase)}.")
    return ascii_uppercase[:count]


def extract_choice(response: str, options: Sequence[str]) -> str:
    """The letter of the option that a response names, or `""` if it names none.

    Tried in order, the first that finds a valid letter wins: a label at the beginning (`B`, `(B)`, `B.`, `b) ...`); the last "answer is B" or the like; the last
    letter in brackets; the only option whose whole text occurs in the response; the last capital letter that stands alone ("A" before a
    word is the article, not a choice).

    The formats are those that lmms-eval 0.7.3 looks for. Departures: where it draws a letter at random (LongVideoBench, EgoSchema) there is none
    here, so that the same response has the same score each time; letters past the last option never count; an option's text counts
    everywhere.

    Args:
        response: what the model wrote.
        options: the texts of the options, in order.
    """
    valid = letters(len(options))
    text = response.strip()

    def last(found: list[str]) -> str:
        return next((letter for letter in reversed([f.upper() for f in found]) if letter in valid), "")

    if (match := _LABEL.match(text)) and match[1].upper() in valid:
        return match[1].upper()
    for found in (_PHRASE.findall(text), _BRACKETED.findall(text)):
        if letter := last(found):
            return letter
    if letter := _named_by_text(text, options):
        return letter
    return last([m[1] for m in _STANDING_ALONE.finditer(text) if not _is_article(text, m)])


def _named_by_text(text: str, options: Sequence[str]) -> str:
    """The letter of the only option whose text occurs; a text inside another option's text that occurs too does not count."""
    lowered = text.casefold()
    texts = [option.strip().rstrip(".").casefold() for option in options]
    present = [i for i, option in enumerate(texts) if option and _occurs(option, lowered)]
    longest = [i for i in present if not any(j != i and texts[i] in texts[j] and texts[i] != texts[j] for j in present)]
    return letters(len(options))[longest[0]] if len(longest) == 1 else ""


def _occurs(option: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None


def _is_article(text: str, match: re.Match) -> bool:
    return match[1] in "AI" and re.match(r"\s+[a-z]", text[match.end() :]) is not None
