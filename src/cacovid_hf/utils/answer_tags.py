"""From a whole response to the answer that it gives: thinking is left out, and tags say where the answer stands."""

import re
import unicodedata

_THINK = re.compile(r"<\s*(/?)\s*(?:think|thinking|thought|reasoning)\s*>", re.IGNORECASE)
_ANSWER = re.compile(r"<\s*(/?)\s*answer\s*>", re.IGNORECASE)
_BOXED = re.compile(r"\\?\b[f]?boxed\s*\{")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathsf|mbox)\s*\{([^{}]*)\}")
# Marks that Unicode's compatibility form leaves as they are.
_ASIAN_MARKS = str.maketrans("【】「」『』〔〕、。", "()()()(),.")  # noqa: RUF001
# Soft hyphens, zero-width spaces and joiners, marks of direction and of an emoji's look, byte order marks.
INVISIBLE = "".join(
    map(
        chr,
        (
            0xAD,
            0x61C,
            0x180E,
            *range(0x200B, 0x2010),
            *range(0x202A, 0x202F),
            *range(0x2060, 0x2070),
            0xFE0E,
            0xFE0F,
            0xFEFF,
        ),
    )
)
_WITHOUT_INVISIBLE = str.maketrans("", "", INVISIBLE)
_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_SCRIPTS_MEET = re.compile(rf"(?<=[{_ASIAN}])(?=[A-Za-z])|(?<=[A-Za-z])(?=[{_ASIAN}])")


def final_answer(text: str) -> str:
    """Return what stands in the last `<answer>...</answer>` that is not empty, or all of `text`; without thinking and surrounding white space.

    Thinking is what stands in `<think>...</think>`, before a `</think>` whose beginning is in the prompt, and behind a `<think>` that is cut off; in
    the last case an `<answer>` within it counts. An `<answer>` that is not closed reaches to the end.
    """
    text = _without_thinking(text)
    tags = list(_ANSWER.finditer(text))
    ends = [*(tag.start() for tag in tags), len(text)]
    answers = [text[tag.end() : end].strip() for tag, end in zip(tags, ends[1:], strict=True) if not tag[1]]
    if answers:
        return next(filter(None, reversed(answers)), "")
    return text[: ends[0]].strip()  # where the beginning of the tag is in the prompt, its end is here


def _without_thinking(text: str) -> str:
    kept: list[str] = []
    depth, end, last, closed = 0, 0, "", False
    for tag in _THINK.finditer(text):
        last = tag[1]
        if not last:
            if depth == 0:
                kept.append(text[end : tag.start()])
            depth += 1
        elif depth == 0 and not closed:
            kept.clear()  # it began in the prompt
        elif depth == 0:
            kept.append(text[end : tag.start()])
        else:
            depth -= 1
        closed = closed or bool(last)
        end = tag.end()
    if depth == 0 or last:
        kept.append(text[end:])
    elif answer := _ANSWER.search(text, end):
        kept.append(text[answer.start() :])
    return " ".join(kept)


def boxed(text: str) -> str:
    r"""Return what stands in the last `\boxed{...}`, without commands that set a text in it; `""` if there is none."""
    beginnings = [match.end() for match in _BOXED.finditer(text)]
    if not beginnings:
        return ""
    content, depth = text[beginnings[-1] :], 1
    for place, character in enumerate(content):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            content = content[:place]
            break
    return _TEXT_COMMAND.sub(r"\1", content).strip()


def plain_characters(text: str) -> str:
    """Full-width and other compatibility characters as the ordinary ones, without invisible ones.

    A Latin letter stands apart from Chinese, Japanese and Korean ones.
    """
    text = unicodedata.normalize("NFKC", text).translate(_WITHOUT_INVISIBLE)
    return _SCRIPTS_MEET.sub(" ", text.translate(_ASIAN_MARKS))
