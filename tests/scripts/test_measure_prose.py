"""The sentences of the README and the pages: how they are counted, and the limits that they keep."""

import pytest

from scripts import measure_prose

ROOT = measure_prose.ROOT

PAGE = """# A heading; not counted

One sentence with `some.code(x; y)` in it. Another
that goes on here; and [a link](else.md#a;b) too!

- An item
  of two lines
- Two. Sentences.

```python
code = "left out; of course."
```

| short; cell | this cell is long enough that it must be a sentence. Is it? |
|---|---|
"""


def test_what_counts_as_a_sentence(tmp_path):
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    page = measure_prose.measure(tmp_path / "page.md", tmp_path)
    found = [" ".join(words) for words in page.sentences]
    assert found == [
        "One sentence with code in it.",
        "Another that goes on here; and a link too!",
        "An item of two lines",
        "Two.",
        "Sentences.",
        "this cell is long enough that it must be a sentence.",
        "Is it?",
    ]
    assert page.semicolons == 3  # in the heading, the paragraph and the cell
    assert page.words_per_sentence == pytest.approx((6 + 9 + 5 + 1 + 1 + 11 + 2) / 7)
    assert page.long_share == 0


@pytest.mark.parametrize(("count", "share"), [(35, 0.0), (36, 1.0)])
def test_a_sentence_is_long_from_36_words(tmp_path, count, share):
    (tmp_path / "page.md").write_text("word " * count, encoding="utf-8")
    assert measure_prose.measure(tmp_path / "page.md", tmp_path).long_share == share


def test_the_pages_keep_the_limits():
    """The README alone, and all user pages together; no page has a semicolon outside code."""
    pages = [measure_prose.measure(path) for path in measure_prose.user_pages(ROOT)]
    for page in (pages[0], measure_prose.together("all", pages)):
        assert page.words_per_sentence < measure_prose.WORDS_PER_SENTENCE
        assert page.long_share < measure_prose.LONG_SHARE
    assert {page.name: page.semicolons for page in pages if page.semicolons} == {}
