"""The command `cacovid app`: what it refuses before a model is loaded."""

import sys

import pytest

from cacovid_cli.main import main


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "cacovid_cli.app.page", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["app"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "needs gradio and matplotlib" in error
    assert "pip install" in error
    assert error.count("\n") == 1


def test_a_model_that_is_not_there(capsys):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit) as ended:
        main(["app", "--model", "/nowhere"])
    assert ended.value.code == 2
    assert "/nowhere" in capsys.readouterr().err


def test_a_host_that_is_none(capsys):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit) as ended:
        main(["app", "--host", "a.invalid"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("cacovid: error: a.invalid:7860 cannot be listened at (")
    assert error.count("\n") == 1
