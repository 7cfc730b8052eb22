"""From what a model wrote to the option that it chose: one rule for evaluation, rewards and training."""

import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase

from ..utils.answer_tags import boxed, final_answer, plain_characters
from ..utils.options import comparable, first_alike, read_options

# Before a letter: brackets, quotes, emphasis.
_OPEN = r"[\s(\[{*_\"'`\u2018]*"
# Behind one: brackets, quotes, emphasis.
_CLOSE = r"[\s*_\"'`)\]}]*"
# No apostrophe of a word (I'm, A's) behind it; a closing quote may stand there.
_LETTER = r"([A-Za-z])(?!_*[^\W_]|['\u2019]\w)"
_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# "B. a dog", "(b) a dog", "**B** ...", "B - a dog", '"B" it is', a line of its own; quotes end none that they have not begun ('A "stop" sign').
_LABEL = re.compile(
    rf"{_OPEN}([A-Za-z])(?!\.\s?[a-z]\.)(?:\s*[).:,;\]}}*_]|\s+[-\u2013\u2014]\s|[ \t]*\n|(?<=[\"'`].)[\"'`])"
)
_OPTION_FIRST = re.compile(rf"\W*(?:option|choice)\s+{_OPEN}{_LETTER}", re.IGNORECASE)
_STATED = re.compile(
    rf"(?:\bans(?:wer)?\b(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?|\b(?:option|choice|letter)\s+(?:is|would\s+be|should\s+be)"
    rf"|\b(?:option|choice)\s*(?={_CLOSE}:)|\u7b54\u6848\s*(?:\u662f|\u4e3a|\u9009)?|\u9009(?:\u62e9|\u9879)?)"  # Chinese: the answer is, choose, option
    rf"{_CLOSE}[:=]?{_OPEN}(?:(?:option|choice|letter)\s+{_OPEN})?{_LETTER}",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"(?<![\w'\u2019])([A-Za-z])[)\]}*\"'`]*\s+(?:is|must\s+be)\s+(?:the\s+)?(?:correct|right|answer|best)\b",
    re.IGNORECASE,
)
_MENTIONED = re.compile(
    rf"\b(?:option|choice|choose|chose|pick|select|go\s+(?:with|for))\s+{_OPEN}{_LETTER}", re.IGNORECASE
)
_BRACKETED = re.compile(r"[(\[{]([A-Z])[)\]}]")
_BRACKETED_SMALL = re.compile(r"(?<!\w)[(\[{]([a-z])[)\]}]")
_STANDING_ALONE = re.compile(r"(?<![^\W_]|['\u2019])([A-Z])(?!_*[^\W_]|['\u2019])")
# What may follow a letter that is no word itself.
_GOES_ON = re.compile(r"\s+(?:is|was|because|since|as|and|or|but)\b")
_REJECTED = re.compile(r"[)\]}*\"'`]*\s+(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn't|wasn't|cannot|can't)\b")


def extract_choice(response: str, options: Sequence[str] | Mapping[str, str]) -> str:
    """The letter of the option that a response names, or `""` if it names none.

    Thinking is left out. Then the last `<answer>` tag, and in it the last `\\boxed{}`, say where the answer stands. Full-width characters count as the
    ordinary ones. These forms are tried in order, and the first that finds a valid letter wins:

    1. an option's whole text and nothing else;
    2. a label at the beginning: `B`, `(B)`, `B.`, `b) ...`, `Option B`;
    3. the last "answer is B", "option is B", "B is right" or the like;
    4. the last capital letter in brackets;
    5. the only option whose whole text occurs in the response;
    6. the last "option B" or "I choose B";
    7. the last capital letter that stands alone, then the last small one in brackets.

    "A" before a word is the article, not a choice, and so is a small letter. "Option A is wrong" chooses nothing. Of options with equal texts the
    first counts for all.

    The formats are those that lmms-eval 0.7.3 looks for, and tags. Departures: where it draws a letter at random (LongVideoBench, EgoSchema), there is
    none here, so that a response always has the same score. Letters past the last option never count. An option's text counts everywhere.

    Args:
        response: what the model wrote.
        options: the texts of the options in order, or by letter.
    """
    texts = options if isinstance(options, Mapping) else read_options(options)
    valid, text = "".join(texts), plain_characters(final_answer(response)).strip()
    plain = {letter: plain_characters(option) for letter, option in texts.items()}
    for part in filter(None, (boxed(text), text)):
        letter = (
            _whole_text(part, plain)
            or _labelled(part, valid)
            or _named_by_text(part, plain)
            or _last(_MENTIONED.finditer(part), valid)
            or _last(_STANDING_ALONE.finditer(part), valid)
            or _last(_BRACKETED_SMALL.finditer(part), valid)
        )
        if letter:
            return first_alike(letter, texts)
    return ""


def named_letter(text: str) -> str:
    """The letter that a text chooses, as `extract_choice` finds it, where the options are not known."""
    text = plain_characters(final_answer(text)).strip()
    for part in filter(None, (boxed(text), text)):
        letter = (
            _labelled(part, ascii_uppercase)
            or _last(_MENTIONED.finditer(part), ascii_uppercase)
            or _last(_STANDING_ALONE.finditer(part), ascii_uppercase)
            or _last(_BRACKETED_SMALL.finditer(part), ascii_uppercase)
        )
        if letter:
            return letter
    return ""


def labelled_letter(text: str) -> str:
    """The letter that a text begins with as a label, states or has in brackets; `""` if its letters may be words of it, as in "vitamin C"."""
    text = plain_characters(final_answer(text)).strip()
    return _labelled(boxed(text) or text, ascii_uppercase)


def _labelled(text: str, valid: str) -> str:
    """The letter of a label at the beginning, of a statement or in brackets."""
    if (
        (match := _ALONE.fullmatch(text) or _LABEL.match(text))
        and match[1].upper() in valid
        and not _is_rejected(match)
    ):
        return match[1].upper()
    return (
        _last(filter(None, [_OPTION_FIRST.match(text)]), valid)
        or _last(_STATED.finditer(text), valid)
        or _last(_CONFIRMED.finditer(text), valid)
        or _last(_BRACKETED.finditer(text), valid)
    )


def _last(found: Iterable[re.Match[str]], valid: str) -> str:
    """The last valid letter that is no word and is not said to be wrong."""
    chosen = [match[1].upper() for match in found if not _is_word(match) and not _is_rejected(match)]
    return next((letter for letter in reversed(chosen) if letter in valid), "")


def _whole_text(text: str, options: Mapping[str, str]) -> str:
    """The letter of the only option whose text this is, with or without its letter; a letter alone is a letter, whatever the texts are."""
    whole = comparable(text)
    found = [letter for letter, option in options.items() if len(whole) > 1 and comparable(option) == whole]
    return found[0] if len({options[letter] for letter in found}) == 1 else ""


def _named_by_text(text: str, options: Mapping[str, str]) -> str:
    """The letter of the only option whose text occurs; a text inside another option's text that occurs too does not count."""
    lowered = text.casefold()
    texts = {letter: option.strip().rstrip(".").casefold() for letter, option in options.items()}
    present = {letter: option for letter, option in texts.items() if option and _occurs(option, lowered)}
    longest = [i for i in present if not any(texts[i] in text and texts[i] != text for text in present.values())]
    return longest[0] if len({texts[i] for i in longest}) == 1 else ""


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
