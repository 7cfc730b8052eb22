"""What the page says, as HTML: pure functions of a report."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from cacovid_hf.ratio import AutoBudget, Ratio

from .report import Report
from .studio import ALL_TOKENS, Answer

_OPTION = re.compile(r"--[a-z-]+")
STAGES = ("decode", "prepare", "vision", "policy", "prefill", "generation")
_STAGE_WORDS = {
    "waiting": "waiting",
    "prepare": "writing the prompt",
    "vision": "embedding the prompt",
    "policy": "choosing the tokens",
    "prefill": "reading the prompt",
    "generation": "answering",
    "stopped": "stopped",
}


def heading(title: str, notice: str = "") -> str:
    """Return the name of the model, and a line beneath it."""
    # The dashes of an option stay with its name.
    words = _OPTION.sub(r"<code>\g<0></code>", escape(notice))
    note = f'<p class="cv-note">{words}</p>' if notice else ""
    return f"<h1>Which video tokens contribute to the answer?</h1><p class='cv-hint'>Model: {escape(title)}</p>{note}"


def status(report: Report) -> str:
    """One line: what goes on, or what is wrong."""
    if report.error:
        return f'<p class="cv-error" role="alert">{escape(report.error)}</p>'
    spin = '<span class="cv-spin" aria-hidden="true"></span>' if report.running else ""
    return f'<p class="cv-status" role="status" aria-live="polite">{spin}{escape(report.status)}</p>'


def answers(report: Report) -> str:
    """Return a card per answer, the words growing in it."""
    if not report.answers:
        return '<p class="cv-hint">The answers will stand here.</p>'
    cards = "".join(_card(answer) for answer in report.answers)
    return f'<p class="cv-question">{escape(report.question)}</p><div class="cv-cards">{cards}</div>'


def _card(answer: Answer) -> str:
    stage = "" if answer.stage is None else _STAGE_WORDS.get(answer.stage, answer.stage)
    words = escape(answer.text) or ("…" if answer.stage else "(no words)")
    if answer.stage is None and answer.kept is None:
        words = "—"
    facts = [stage] if stage else []
    if answer.kept is not None and answer.total:
        facts.append(f"{tokens(answer.kept)} of {answer.total} video tokens ({answer.kept / answer.total:.1%})")
    if answer.times and answer.stage is None:
        facts.append(f"first word after {duration(answer.first_token_seconds)}")
    note = f'<p class="cv-note">{escape(answer.notice)}</p>' if answer.notice else ""
    return (
        f'<article class="cv-card"><h3>{escape(answer.method)}{_at(answer)}</h3>'
        f'<p class="cv-words" aria-live="polite">{words}</p><p class="cv-facts">{" · ".join(facts)}</p>{note}</article>'
    )


def _at(answer: Answer) -> str:
    return "" if answer.method == ALL_TOKENS else f" <small>at {ratio_words(answer.ratio)}</small>"


def costs(report: Report) -> str:
    """Return the prompt's cost with all tokens and with those that are kept."""
    known = [answer for answer in report.answers if answer.cost is not None]
    if not known:
        return ""
    known = _stock_first(known)
    stock = known[0].cost if known[0].method == ALL_TOKENS else None
    rows, remarks = [], []
    for answer in known:
        cost = answer.cost
        assert cost is not None
        prefill = amount(cost.operations, "FLOP", 1000)
        policy = "" if cost.policy is None else amount(cost.policy, "FLOP", 1000)
        rows.append([_name(answer), f"{cost.tokens:,}", prefill, policy, amount(cost.cache_bytes, "B", 1024)])
        if stock is not None and cost is not stock and cost.all_operations and stock.operations:
            less = stock.operations / cost.all_operations
            words = f"{less:.1f}x fewer" if less >= 1 else f"{1 / less:.1f}x more"
            remarks.append(f"{answer.method} takes {words} operations{', with its policy' if cost.policy else ''}.")
    note = f'<p class="cv-hint">{escape(" ".join(remarks))}</p>' if remarks else ""
    return _table("What the prompt costs", ("", "tokens", "prefill", "policy", "cache"), rows) + note


def times(report: Report) -> str:
    """Seconds of each stage, of the methods and of all tokens."""
    known = _stock_first(answer for answer in report.answers if answer.times and answer.stage is None)
    rows = [
        [
            _name(answer),
            f"<b>{duration(answer.first_token_seconds)}</b>",
            *(duration(answer.times.get(stage, 0.0)) for stage in STAGES),  # type: ignore[union-attr]
        ]
        for answer in known
    ]
    if not rows:
        return ""
    headings = ("selection" if stage == "policy" else stage for stage in STAGES)  # not always by a policy
    note = '<p class="cv-hint">The video is read and encoded once. Its time counts in every row.</p>'
    return _table("Where the time went", ("", "first word", *headings), rows) + note


def ratios(report: Report) -> str:
    """Return the same question at all ratios."""
    if not report.rows:
        return ""
    stock = next((row.text for row in report.rows if row.method == ALL_TOKENS), None)
    rows = []
    for row in report.rows:
        same = (
            "" if stock is None or row.method == ALL_TOKENS or row.kept is None else ("✓" if row.text == stock else "✗")
        )
        kept = "" if row.kept is None else f"{tokens(row.kept)} of {row.total}"
        words = escape(row.text) if row.kept is not None else f'<span class="cv-note">{escape(row.notice or "")}</span>'
        rows.append(
            [
                _name(row),
                ratio_words(row.ratio),
                kept,
                words,
                same,
                duration(row.first_token_seconds) if row.times else "",
            ]
        )
    heads = ("", "ratio", "tokens", "answer", "as with all", "first word")
    return _table(f"The same question at all ratios: {escape(report.question)}", heads, rows)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="cv-scroll" tabindex="0" role="region" aria-label="{caption}"><table class="cv-table">'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _stock_first(answers: Iterable[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.method != ALL_TOKENS)


def _name(answer: Answer) -> str:
    return escape(answer.method)


def ratio_words(ratio: Ratio) -> str:
    """Return a ratio as it is said: `25 %`, `auto`."""
    return "auto" if isinstance(ratio, (str, AutoBudget)) else f"{100 * ratio:g} %"


def tokens(count: float) -> str:
    """Return a number of tokens, which is a mean over layers for some methods."""
    return f"{count:,.0f}" if count == int(count) else f"{count:,.1f}"


def duration(seconds: float) -> str:
    """Seconds, or milliseconds if there is less than one."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def amount(value: float | None, unit: str, step: int) -> str:
    """Return a number with a unit, scaled by powers of `step`; a dash if it is not known."""
    if value is None:
        return "not counted"
    scales = ("", "k", "M", "G", "T", "P") if step == 1000 else ("", "Ki", "Mi", "Gi", "Ti")
    for scale in scales:
        if value < step or scale == scales[-1]:
            break
        value /= step
    return f"{value:.0f} {scale}{unit}" if value >= 100 else f"{value:.3g} {scale}{unit}"
