"""From what a model wrote to the option that it chose."""

import re
from collections.abc import Iterable, Sequence
from string import ascii_uppercase

# Before a letter: brackets, quotes, emphasis.
_OPEN = r"[\s(\[{*_\"'`]*"
_LETTER = r"([A-Za-z])(?![\w'\u2019])"
_ALONE = re.compile(r"\W*([A-Za-z])\W*")
# "B. a dog", "(b) a dog", "**B** ...", "B - a dog", '"B" it is', a line of its own; quotes end none that they have not begun ('A "stop" sign').
_LABEL = re.compile(
    rf"{_OPEN}([A-Za-z])(?!\.\s?[a-z]\.)(?:\s*[).:,;\]}}*]|\s+[-\u2013\u2014]\s|[ \t]*\n|(?<=[\"'`].)[\"'`])"
)
_OPTION_FIRST = re.compile(rf"\W*(?:option|choice)\s+{_OPEN}{_LETTER}", re.IGNORECASE)
_STATED = re.compile(
    rf"\b(?:answer(?:\s+(?:is|would\s+be|should\s+be))?|(?:option|choice)\s+(?:is|would\s+be|should\s+be)|(?:option|choice)\s*(?=[:\uff1a]))"
    rf"\s*[:\uff1a]?{_OPEN}(?:(?:option|choice)\s+{_OPEN})?{_LETTER}",
    re.IGNORECASE,
)
_MENTIONED = re.compile(rf"\b(?:option|choice)\s+{_OPEN}{_LETTER}", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[{]([A-Z])[)\]}]")
_STANDING_ALONE = re.compile(r"(?<![\w'\u2019])([A-Z])(?![\w'\u2019])")
# What may follow a letter that is no word itself.
_GOES_ON = re.compile(r"\s+(?:is|was|because|since|as|and|or|but)\b")
_REJECTED = re.compile(r"[)\]}*\"'`]*\s+(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn't|wasn't|cannot|can't)\b")


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

    Tried in order, the first that finds a valid letter wins: a label at the beginning (`B`, `(B)`, `B.`, `b) ...`, `Option B`); the last "answer is B",
    "option is B" or the like; the last letter in brackets; the only option whose whole text occurs in the response; the last "option B"; the last
    capital letter that stands alone. "A" before a word is the article, not a choice, and so is a small letter; "option A is wrong" chooses nothing.

    The formats are those that lmms-eval 0.7.3 looks for. Departures: where it draws a letter at random (LongVideoBench, EgoSchema) there is none
    here, so that the same response has the same score each time; letters past the last option never count; an option's text counts
    everywhere.

    Args:
        response: what the model wrote.
        options: the texts of the options, in order.
    """
    valid, text = letters(len(options)), response.strip()
    return (
        _labelled(text, valid)
        or _named_by_text(text, options)
        or _last(_MENTIONED.finditer(text), valid)
        or _last(_STANDING_ALONE.finditer(text), valid)
    )


def named_letter(text: str) -> str:
    """The letter that a text chooses, as `extract_choice` finds it, where the options are not known: by a label, a statement, brackets or a mention."""
    text = text.strip()
    return _labelled(text, ascii_uppercase) or _last(_MENTIONED.finditer(text), ascii_uppercase)


def _labelled(text: str, valid: str) -> str:
    """The letter of a label at the beginning, of a statement or in brackets."""
    if (match := _ALONE.fullmatch(text) or _LABEL.match(text)) and match[1].upper() in valid:
        return match[1].upper()
    return (
        _last(filter(None, [_OPTION_FIRST.match(text)]), valid)
        or _last(_STATED.finditer(text), valid)
        or _last(_BRACKETED.finditer(text), valid)
    )


def _last(found: Iterable[re.Match[str]], valid: str) -> str:
    """The last valid letter that is no word and is not said to be wrong."""
    chosen = [match[1].upper() for match in found if not _is_word(match) and not _is_rejected(match)]
    return next((letter for letter in reversed(chosen) if letter in valid), "")


def _named_by_text(text: str, options: Sequence[str]) -> str:
    """The letter of the only option whose text occurs; a text inside another option's text that occurs too does not count."""
    lowered = text.casefold()
    texts = [option.strip().rstrip(".").casefold() for option in options]
    present = [i for i, option in enumerate(texts) if option and _occurs(option, lowered)]
    longest = [i for i in present if not any(j != i and texts[i] in texts[j] and texts[i] != texts[j] for j in present)]
    return letters(len(options))[longest[0]] if len(longest) == 1 else ""


def _occurs(option: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None


def _is_word(match: re.Match[str]) -> bool:
    """Whether the letter found is the article or the pronoun of a sentence: A, I or a small one, and a word follows."""
    rest = match.string[match.end(1) :]
    if match[1] not in "AI" and match[1].isupper():
        return False
    follows = r"\s+[\"'“\u2018]?\w" if match[1].islower() else r"\s+(?:[\"'“\u2018]|[a-z])"
    return re.match(follows, rest) is not None and not _GOES_ON.match(rest)


def _is_rejected(match: re.Match[str]) -> bool:
    return _REJECTED.match(match.string[match.end(1) :]) is not None
