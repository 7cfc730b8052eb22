"""The words of errors: at most two sentences, and short, whoever raises them."""

import ast
import re
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"
LONGEST = 40  # words


def words_of(node):
    """The text that an exception is made of, with X for what is put in; None if it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return None


def messages():
    """Every text of a `raise`, with its place."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = words_of(node.exc.args[0])
                if text:
                    yield f"{path.relative_to(SOURCES)}:{node.lineno}", text


def test_errors_are_at_most_two_short_sentences():
    found = dict(messages())
    assert len(found) > 500
    long = {place: text for place, text in found.items() if len(text.split()) > LONGEST}
    many = {place: text for place, text in found.items() if len(re.findall(r"[.!?](?= [A-Z]|$)", text)) > 2}
    assert not long
    assert not many
