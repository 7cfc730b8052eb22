"""From a text to the option that it names: one rule for what a model wrote and for what a data set calls right.

A text *states* an option by its letter, its whole text or a sentence that says so. Of a model's response, weaker forms count too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from .answer_tags import boxed, final_answer, plain_characters
from .options import comparable, end_of_list, first_alike, read_options, split_label
from .values import shown, text_of

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
_CHOSEN_FIRST = re.compile(
    rf"\W*(?:i|we)\s+(?:would\s+)?(?:choose|chose|pick|select|go\s+(?:with|for))\s+{_OPEN}(?:(?:option|choice)\s+{_OPEN})?{_LETTER}",
    re.IGNORECASE,
)
# What a sentence that states an option's text begins with.
_STATEMENT = re.compile(
    r"\W*(?:(?:so|thus|therefore|hence)\W+)?(?:(?:the\s+)?(?:(?:correct|right|final|best)\s+)?(?:answer|option|choice)"
    r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?|(?:it|this|that)(?:\s+is|['\u2019]s)"
    r"|(?:i|we)\s+(?:would\s+)?(?:choose|chose|pick|select|say|think|believe|go\s+(?:with|for)))(?!\w)[\s:=*_,-]*(?:that\s+)?",
    re.IGNORECASE,
)
# "A and B", "(A), (C)", "A/B": several letters are no choice.
_AND = (  # the last two words are Chinese: and, or
    r"(?:\s*,\s*(?:and|or|nor)\b|\s*[,|&/+\-\u2013]|;(?!\s)|\s+(?:and(?:\s+also)?|or(?:\s+maybe)?|nor|plus|as\s+well\s+as|\u548c|\u6216)\b"
    r"|(?<=[)\]}])\s*(?=[(\[{])|\s)\s*"
)
_ENDS = r"(?=\s*(?:$|[^\w\s'\u2019*\"`)\]}]|(?:and|or|nor|are|were|both|may|might|could|can|together)\b))"
_NOUN = r"(?:(?:option|choice|answer|letter)\s+)?"
_AND_ANOTHER = re.compile(rf"{_CLOSE}{_AND}{_NOUN}{_OPEN}{_LETTER}{_CLOSE}{_ENDS}", re.IGNORECASE)
_BESIDE_ANOTHER = re.compile(rf"(?<![^\W_])([A-Za-z]){_CLOSE}{_AND}{_NOUN}{_OPEN}$", re.IGNORECASE)
_END = re.compile(rf"{_CLOSE}{_ENDS}", re.IGNORECASE)
_BEFORE = 32  # characters before a letter that are looked at
_BRACKETED = re.compile(r"[(\[{]([A-Z])[)\]}]")
_BRACKETED_SMALL = re.compile(r"(?<!\w)[(\[{]([a-z])[)\]}]")
_STANDING_ALONE = re.compile(r"(?<![^\W_]|['\u2019])(?<!\b[A-Za-z]\.)([A-Z])(?!_*[^\W_]|['\u2019])")
# What follows a letter that is a word itself, and what may follow one that is not.
_ANY_WORD = re.compile(r"\s+[\"'\u201c\u2018]?\w")
_SMALL_WORD = re.compile(r"\s+(?:[\"'\u201c\u2018]|[a-z])")
_GOES_ON = re.compile(r"\s+(?:is|was|because|since|as|and|or|but)\b")
_REJECTED_BEFORE = re.compile(
    rf"(?:\b(?:not|neither|nor|than|instead\s+of|unlike)|n['\u2019]t)\s+{_NOUN}{_OPEN}$", re.IGNORECASE
)
_REJECTED = re.compile(r"[)\]}*\"'`]*\s+(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn't|wasn't|cannot|can't)\b")


def extract_choice(response: str, options: Sequence[str] | Mapping[str, str]) -> str:
    """Return the letter of the option that a response names, or `""` if it names none.

    Thinking is left out. Then the last `<answer>` tag, and in it the last `\\boxed{}`, say where the answer stands. Full-width characters count as the
    ordinary ones, and invisible ones do not count. These forms are tried in order, and the first that finds a valid letter wins:

    1. an option's whole text and nothing else;
    2. a label at the beginning: `B`, `(B)`, `B.`, `b) ...`, `Option B`;
    3. the last "answer is B", "option is B", "B is right" or the like; "I choose B" at the beginning;
    4. a sentence that states an option's text: "the answer is a dog";
    5. the last capital letter in brackets;
    6. the only option whose whole text occurs in the response;
    7. the last "option B" or "choose B";
    8. the last capital letter that stands alone, then the last small one in brackets.

    "A" before a word is the article, not a choice, and so is a small letter. "Option A is wrong" chooses nothing, and neither does "A and B". A response
    that begins by listing the options ("A. red B. blue C. green") chooses by what follows the list. Of options with equal texts the first counts for
    all.

    The formats are those that lmms-eval 0.7.3 looks for, and tags. Departures: where it draws a letter at random (LongVideoBench, EgoSchema), there is
    none here, so that a response always has the same score. Letters past the last option never count. An option's text counts everywhere.

    Args:
        response: what the model wrote.
        options: the texts of the options in order, or by letter.
    """
    texts = options if isinstance(options, Mapping) else read_options(options)
    valid, text = "".join(texts), plain_characters(final_answer(response)).strip()
    plain = {letter: plain_characters(option) for letter, option in texts.items()}
    for part in filter(None, (boxed(text), _conclusion(text, min(3, len(texts))))):
        letter = (
            _stated(part, plain)
            or _last(_BRACKETED.finditer(part), valid)
            or _named_by_text(part, plain)
            or _last(_MENTIONED.finditer(part), valid)
            or _last(_STANDING_ALONE.finditer(part), valid)
            or _last(_BRACKETED_SMALL.finditer(part), valid)
        )
        if letter:
            return first_alike(letter, texts)
    return ""


def right_letter(answer: Any, options: Mapping[str, str], prefer: str | None = None) -> str:
    """Return the letter of the option that a data set calls right.

    The answer is read as a response is (`extract_choice`), in its forms 1 to 4 alone. What those say is certain: the weaker ones would turn an
    answer with a typing error into another option. A letter beside a text must be that text's. Of options with equal texts the first one counts.

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
    plain = plain_characters(text).strip()
    plain_options = {letter: plain_characters(option) for letter, option in options.items()}
    alone = _ALONE.fullmatch(plain)
    by_text = next((letter for letter, option in options.items() if option == text), "")
    by_letter = alone[1].upper() if alone and alone[1].upper() in options else ""
    if by_text and by_letter and options[by_text] != options[by_letter]:
        if prefer is None:
            raise ValueError(
                f"{said} is the letter of option {by_letter} and the text of option {by_text}: give both, as '{by_text}. {text}'."
            )
        return first_alike(by_letter if prefer == "letter" else by_text, options)
    if found := by_text or by_letter:
        return first_alike(found, options)
    alike = _with_text(text, options)
    if len({options[letter] for letter in alike}) > 1:
        raise ValueError(f"{said} fits the options {' and '.join(alike)} alike: give the letter.")
    if found := "".join(alike[:1]) or _letter_beside_text(plain, plain_options):
        return first_alike(found, options)
    if found := _stated(plain, plain_options):
        has_label, following = split_label(plain)
        named = _named_by_text(plain, plain_options)
        if named not in ("", found):
            raise ValueError(
                f"{said} has the letter of option {found} and the text of option {named}: give one of them."
            )
        if named or not (has_label and following) or _GOES_ON.match(f" {following}"):
            return first_alike(found, options)
    listed = "; ".join(f"{letter}. {option}" for letter, option in options.items())
    raise ValueError(
        f"{said} is not an option ({listed if len(listed) <= 160 else f'{listed[:157]}...'}): give an option's letter or its text."
    )


def named_letter(text: str) -> str:
    """Return the letter that a text chooses, as `extract_choice` finds it, where the options are not known."""
    text = plain_characters(final_answer(text)).strip()
    for part in filter(None, (boxed(text), _conclusion(text, 3))):
        letter = (
            _stated_letter(part, ascii_uppercase)
            or _last(_BRACKETED.finditer(part), ascii_uppercase)
            or _last(_MENTIONED.finditer(part), ascii_uppercase)
            or _last(_STANDING_ALONE.finditer(part), ascii_uppercase)
            or _last(_BRACKETED_SMALL.finditer(part), ascii_uppercase)
        )
        if letter:
            return letter
    return ""


def labelled_letter(text: str) -> str:
    """Return the letter that a text begins with as a label, states or has in brackets; `""` if its letters may be words of it, as in "vitamin C"."""
    text = plain_characters(final_answer(text)).strip()
    part = boxed(text) or _conclusion(text, 3)
    return _stated_letter(part, ascii_uppercase) or _last(_BRACKETED.finditer(part), ascii_uppercase)


def stated_text(text: str) -> str:
    """Return what a sentence states, as `comparable` texts are: "a dog" of "The answer is a dog."; a text without such a beginning as it is."""
    text, place = plain_characters(text), 0
    while (match := _STATEMENT.match(text, place)) and match.end() < len(text):
        place = match.end()
    return comparable(text[place:].strip().strip("*_()[]"))


def _conclusion(text: str, least: int) -> str:
    """Return what a response says behind a list of at least `least` options with which it begins; a response without one as it is."""
    end = end_of_list(text, least)
    if not end:
        return text
    if behind := text[end:].partition("\n")[2].strip():
        return behind
    statements = list(_STATED.finditer(text)) or list(_CONFIRMED.finditer(text))
    return text[statements[-1].start() :] if statements else ""


def _stated(text: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that a text states, by its letter or its text."""
    return (
        _whole_text(text, options) or _stated_letter(text, "".join(options)) or _whole_text(stated_text(text), options)
    )


def _stated_letter(text: str, valid: str) -> str:
    """Return the letter of a label at the beginning or of a statement."""
    if (
        (match := _ALONE.fullmatch(text) or _LABEL.match(text))
        and match[1].upper() in valid
        and not _is_rejected(match)
        and not _is_one_of_several(match, valid)
    ):
        return match[1].upper()
    return (
        _last(filter(None, [_OPTION_FIRST.match(text)]), valid)
        or _last(_STATED.finditer(text), valid)
        or _last(_CONFIRMED.finditer(text), valid)
        or _last(filter(None, [_CHOSEN_FIRST.match(text)]), valid)
    )


def _last(found: Iterable[re.Match[str]], valid: str) -> str:
    """Return the last valid letter that is no word, is not said to be wrong and is not one of several."""
    return next(
        (
            match[1].upper()
            for match in reversed(list(found))
            if match[1].upper() in valid
            and not (_is_word(match) or _is_rejected(match) or _is_one_of_several(match, valid))
        ),
        "",
    )


def _with_text(text: str, options: Mapping[str, str]) -> list[str]:
    """Return the letters of the options whose text this is, as texts are compared."""
    whole = comparable(text)
    return [letter for letter, option in options.items() if whole and comparable(option) == whole]


def _whole_text(text: str, options: Mapping[str, str]) -> str:
    """Return the letter of the only option whose text this is; a letter alone is a letter, whatever the texts are."""
    found = _with_text(text, options) if len(comparable(text)) > 1 else []
    return found[0] if len({options[letter] for letter in found}) == 1 else ""


def _letter_beside_text(text: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option whose letter and text this is, in either order and whatever stands between: "B (a dog)", "a dog, B"."""
    whole = _words(text)
    by_form = {_words(f"{option} {letter}"): letter for letter, option in options.items()}
    by_form |= {_words(f"{letter} {option}"): letter for letter, option in options.items()}
    return by_form.get(whole, "")


def _words(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


def _named_by_text(text: str, options: Mapping[str, str]) -> str:
    """Return the letter of the only option whose text occurs; a text inside another option's text that occurs too does not count."""
    lowered = text.casefold()
    texts = {letter: option.strip().rstrip(".").casefold() for letter, option in options.items()}
    present = {letter: option for letter, option in texts.items() if option and _occurs(option, lowered)}
    longest = [i for i in present if not any(texts[i] in text and texts[i] != text for text in present.values())]
    return longest[0] if len({texts[i] for i in longest}) == 1 else ""


def _occurs(option: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None


def _is_word(match: re.Match[str]) -> bool:
    """Whether the letter found is the article or the pronoun of a sentence: A, I or a small one, and a word follows."""
    text, end = match.string, match.end(1)
    if match[1] not in "AI" and match[1].isupper():
        return False
    follows = _ANY_WORD if match[1].islower() else _SMALL_WORD
    return follows.match(text, end) is not None and not _GOES_ON.match(text, end)


def _is_rejected(match: re.Match[str]) -> bool:
    preceding = match.string[max(0, match.start(1) - _BEFORE) : match.start(1)]
    return bool(_REJECTED.match(match.string, match.end(1)) or _REJECTED_BEFORE.search(preceding))


def _is_one_of_several(match: re.Match[str], valid: str) -> bool:
    """Whether the letter found is named together with another one, as in "A and B", so that neither is chosen."""
    text, end = match.string, match.end(1)
    following = _AND_ANOTHER.match(text, end)
    preceding = (
        _BESIDE_ANOTHER.search(text[max(0, match.start(1) - _BEFORE) : match.start(1)])
        if _END.match(text, end)
        else None
    )
    return any(
        other
        and other[1].upper() in valid
        and other[1].upper() != match[1].upper()
        and other[1].isupper() == match[1].isupper()
        for other in (following, preceding)
    )
