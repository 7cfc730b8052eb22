"""What the page says: pure functions of a report, checked by what a reader would see."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cacovid_cli.app import views
from cacovid_cli.app.line import Line
from cacovid_cli.app.map_view import maps, section, strip
from cacovid_cli.app.report import Form, Report, Visitor, ask, ask_at_all_ratios, waiting
from cacovid_cli.app.studio import ALL_TOKENS, Answer, Studio
from cacovid_cli.panels import Panel, panels_of, veiled
from cacovid_hf import auto, tiny


@pytest.fixture(scope="module")
def reported():
    studio = Studio(auto.load_model(tiny.model_path()), auto.load_processor(tiny.model_path()))
    clip, visitor = tiny.clips()[0], Visitor()
    form = Form(str(clip.path), clip.questions[0].text, 0.25, ("cacovid", "fastv", "uniform"))
    list(ask(studio, Line(), visitor, replace(form, ratio=0.75)))
    list(ask_at_all_ratios(studio, Line(), visitor, form))
    return visitor.report


class _Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.words, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(html):
    """The words of well-formed HTML."""
    parser = _Words()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return re.sub(r"\s+", " ", " ".join(parser.words))


def cells(html):
    return [
        [read(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", html)
    ]


def test_answers(reported):
    words = read(views.answers(reported))
    assert "What color is the cross?" in words
    assert "216 of 288 video tokens (75.0%)" in words
    assert words.count("purple") >= 2
    assert "cacovid at 75 %" in words


def test_costs(reported):
    heads, *rows = cells(views.costs(reported))
    assert heads == ["", "tokens", "prefill", "policy", "cache"]
    assert [row[0] for row in rows] == [ALL_TOKENS, "cacovid", "fastv", "uniform"]
    assert rows[0][1] == "296"
    assert rows[1][1] == "224"
    assert rows[0][3] == ""
    assert rows[1][3].endswith("FLOP")
    assert rows[3][3] == ""
    assert rows[0][4] == "444 KiB"
    assert rows[1][4] == "336 KiB"
    remark = read(views.costs(reported))
    assert re.search(r"uniform takes 1\.\dx fewer operations\.", remark)


def test_times(reported):
    heads, *rows = cells(views.times(reported))
    stages = ["decode", "prepare", "vision", "selection", "prefill", "generation"]
    assert heads == ["", "first word", *stages]
    assert [row[0] for row in rows] == [ALL_TOKENS, "cacovid", "fastv", "uniform"]
    assert all(re.fullmatch(r"\d+ ms|\d+\.\d\d s", cell) for row in rows for cell in row[1:])
    assert len({row[2] for row in rows}) == 1  # read once


def test_all_ratios(reported):
    heads, *rows = cells(views.ratios(reported))
    assert heads == ["", "ratio", "tokens", "answer", "as with all", "first word"]
    assert rows[0][:5] == [ALL_TOKENS, "100 %", "288 of 288", "purple", ""]
    assert ["cacovid", "10 %", "28 of 288", "purple", "✓"] in [row[:5] for row in rows]
    assert any(row[0] == "fastv" and "cannot be met" in row[3] for row in rows)


def test_anybodys_words_are_words():
    """Of a question, of an answer, of a name, of an error."""
    bad = '<img src=x onerror="alert(1)"> & <b>'
    answer = Answer("cacovid", 0.5, text=bad, stage=None, times={"decode": 1.0}, kept=1, total=2, notice=bad)
    report = Report(status=bad, question=bad, answers=(answer,), rows=(answer,))
    pages = [view(report) for view in (views.status, views.answers, views.costs, views.times, views.ratios)]
    pages += [views.status(replace(report, error=bad)), views.heading(bad, bad)]
    for page in pages:
        assert "<img" not in page
        read(page)
    assert bad in read(views.answers(report))


def test_an_option_in_the_notice_is_not_torn_apart():
    page = views.heading("tiny", "Start it with --max-new-tokens 8 & <b>.")
    assert "Start it with <code>--max-new-tokens</code> 8 &amp; &lt;b&gt;." in page


def test_states():
    assert 'role="alert"' in views.status(Report(error="It is broken."))
    running = views.status(Report(status="Reading the video", running=True))
    assert "cv-spin" in running
    assert "cv-spin" not in views.status(Report(status="Done"))
    assert waiting(1) == "Waiting: 1 question is before yours"
    assert waiting(3) == "Waiting: 3 questions are before yours"
    growing = views.answers(Report(answers=(Answer("cacovid", "auto", text="pur", stage="generation"),)))
    assert "pur" in read(growing)
    assert "answering" in read(growing)
    assert "at auto" in read(growing)


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (3 << 30, "3 GiB"), (None, "not counted")]
)
def test_amounts(value, words):
    assert views.amount(value, "B", 1024) == words


# ---------------------------------------------------------------- maps


def picture(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))).convert("RGB"))


def test_maps_follow_the_ratio(reported):
    shown = {ratio: maps(reported, ratio) for ratio in (0.75, 0.1)}
    for ratio, html in shown.items():
        words = read(html)
        assert f"cacovid {int(288 * ratio)} of 288 video tokens kept" in words
        assert f"uniform {int(288 * ratio)} of 288 video tokens kept" in words
    assert "ask again" not in read(shown[0.75])
    assert "The answers above were given at 75 %. This is 10 %:" in read(shown[0.1])
    assert "drops tokens inside the language model" in read(shown[0.1])
    assert "has no scores to decide a budget by" in read(maps(reported, "auto"))
    assert "will stand here" in read(maps(Report(), 0.5))


def test_a_map_shows_what_the_file_shows(reported):
    """The same panels: frames veiled by the same tokens, scores on the same colours."""
    import matplotlib

    choice = dict(reported.choices)["cacovid"]
    panels = panels_of(reported.clip.sampled.frames, choice.at(0.1), reported.clip.sampled.timestamps)
    images = re.findall(r'src="([^"]+)"', section("cacovid", panels))
    assert len(images) == 2 * 8 + 1
    for number, panel in enumerate(panels):
        frame, heat = picture(images[2 * number]), picture(images[2 * number + 1])
        drawn = veiled(panel.frames[0], panel.keep, frame.shape[1], frame.shape[0])
        assert np.abs(frame.astype(int) - drawn).mean() < 6  # JPEG
        colours = matplotlib.colormaps["magma"](panel.heat)[..., :3] * 255
        assert np.abs(heat - colours).max() < 3


def test_the_strip_is_the_budget_over_time():
    frame = np.zeros((8, 8, 3), dtype=np.uint8)
    keeps = [np.zeros((2, 2), bool), np.ones((2, 2), bool), np.array([[True, False], [False, False]])]
    panels = [Panel((frame,), keep, None, None, float(second)) for second, keep in enumerate(keeps)]
    html = strip(panels)
    assert [float(part) for part in re.findall(r"--part:([\d.]+)", html)] == [0, 1, 0.25]
    assert "Tokens kept over time: 0, 4, 1" in html
    assert 'title="2.0 s: 1 of 4"' in html
    assert "no scores" in read(section("uniform", panels))
