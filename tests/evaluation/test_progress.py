"""What a run shows where there is no terminal."""

import time

import pytest

from cacovid_hf.evaluation import progress


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    done = []
    for item in progress.shown(range(4), "tiny"):
        now[0] += 100.0
        done.append(item)
    assert done == [0, 1, 2, 3]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "tiny: 4 to go ...",
        "tiny: 1 of 4, about 5 min left ...",
        "tiny: 2 of 4, about 3 min left ...",
        "tiny: 3 of 4, about 2 min left ...",
    ]


def test_what_is_quick_is_one_line(capsys):
    assert list(progress.shown("abc", "tiny")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "tiny: 3 to go ...\n"


@pytest.mark.parametrize(("items", "rank"), [((), 0), ((1, 2), 1)])
def test_nothing_to_do_and_other_processes_say_nothing(capsys, items, rank):
    assert tuple(progress.shown(items, "tiny", rank)) == items
    progress.said("Loading tiny", 1)
    assert capsys.readouterr() == ("", "")
