"""Pages that are done as they are written: every block in order, and what they print is what stands below."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from cacovid_cli.main import main
from cacovid_hf.tiny import clips

SHARE = re.compile(r"(\d+\.\d)%")
ERROR = re.compile(r"± (\d+\.\d)%")
DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page):
    """Kind and text of every code block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)


def follow(page, capsys):
    """Run the Python blocks in one namespace; each `text` block is what was printed since the one before.

    Shares of questions may differ by two of a hundred, as another processor rounds otherwise, and their errors by what follows from that.
    """
    names: dict = {"__name__": "tutorial"}
    capsys.readouterr()
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, page, "exec"), names)
        elif kind == "text":
            printed = capsys.readouterr().out
            shares, expected = (list(map(float, SHARE.findall(words))) for words in (printed, text))
            assert shares == pytest.approx(expected, abs=2.01)
            errors, expected = (list(map(float, ERROR.findall(words))) for words in (printed, text))
            assert errors == pytest.approx(expected, abs=0.6)
            assert SHARE.sub("%", printed).strip() == SHARE.sub("%", text).strip()
    return names


@pytest.mark.parametrize(
    "page", ["tutorials/first_video.md", "tutorials/add_a_method.md", "how_to/files.md", "how_to/see_what_was_kept.md"]
)
def test_what_a_page_prints(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow(page, capsys)


def test_training(tmp_path, monkeypatch, capsys):
    """Data, config and command as they stand; then the question to what was trained."""
    monkeypatch.chdir(tmp_path)
    before, after = [text for kind, text in blocks("tutorials/train_on_your_videos.md") if kind == "python"]
    (config,) = [text for kind, text in blocks("tutorials/train_on_your_videos.md") if kind == "yaml"]
    command, ask = [text for kind, text in blocks("tutorials/train_on_your_videos.md") if kind == "bash"]
    names: dict = {}
    exec(before, names)
    Path("config.yaml").write_text(config, encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        main(command.split()[1:])
    assert not exit.value.code
    capsys.readouterr()
    exec(after, names)
    assert capsys.readouterr().out.split()
    with pytest.raises(SystemExit) as exit:
        main([str(clips()[0].path) if word == "film.mp4" else word for word in shlex.split(ask)[1:]])
    assert not exit.value.code
    assert "72 of 288 kept" in capsys.readouterr().out


def test_a_table_ends_with_a_blank_line():
    """Else what follows it, a heading say, is a row of it on the site."""
    pages = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    ends = {
        f"{page.name}: {after}"
        for page in pages
        for row, after in itertools.pairwise(page.read_text(encoding="utf-8").splitlines())
        if row.startswith("|") and after.strip() and not after.startswith("|")
    }
    assert not ends
