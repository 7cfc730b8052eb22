"""The README's figure is drawn from the committed results."""

import html
import json
import re

from benchmarks.record import ROOT
from studies import readme_figure


def test_the_points_of_the_committed_figure_are_those_of_the_results():
    picture = (ROOT / "docs" / "images" / "results.svg").read_text(encoding="utf-8")
    (description,) = re.findall(r"<dc:description>(.*?)</dc:description>", picture, re.S)
    assert json.loads(html.unescape(description)) == readme_figure.points(readme_figure.RESULTS)
    texts = {html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)}
    assert {title for title, _ in readme_figure.PANELS.values()} <= texts
    assert {name for _, choices in readme_figure.PANELS.values() for name, *_ in choices.values()} <= texts
