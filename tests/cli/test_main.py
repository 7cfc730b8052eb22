"""The command line as it is called: what it prints, what it writes, and one line for whatever is wrong."""

import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.media import write_audio, write_video
from helpers.models import FIRST, stock_model
from helpers.processors import tiny_processor
from PIL import Image

from cacovid_cli.ask import UNTRAINED, ask
from cacovid_cli.main import main
from cacovid_cli.terminal import EMBEDDED
from cacovid_hf import __version__, tiny
from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.tiny.accuracy import answer_accuracy
from cacovid_hf.utils.extras import pip_install

QUESTION = "what color is the circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip, a stock model of each family with its processor, and things that are none."""
    folder = tmp_path_factory.mktemp("cli")
    write_video(folder / "clip.mp4", 120, fps=10)
    write_audio(folder / "sound.mp4")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:2000])
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "no model").mkdir()
    for family in FIRST:
        stock_model(family).save_pretrained(folder / family)
        tiny_processor(family).save_pretrained(folder / family)
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Runs the command line in the folder; status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return call


def in_a_process(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-m", "cacovid_hf", *arguments], capture_output=True, text=True, cwd=cwd)


NOTHING_DROPPED = "note    nothing was dropped: choose how much to keep by --retention-ratio\n"


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize("ratio", [None, "1.0", "0.25"])
def test_ask(run, folder, family, ratio):
    options = [] if ratio is None else ["--retention-ratio", ratio]
    status, out, err = run("ask", "clip.mp4", QUESTION, "--model", family, "--max-new-tokens", 6, *options)
    assert (status, err) == (0, "" if ratio else NOTHING_DROPPED)
    answer = ask(
        load_model(folder / family),
        load_processor(folder / family),
        folder / "clip.mp4",
        QUESTION,
        retention_ratio=float(ratio) if ratio else None,
        max_new_tokens=6,
    )
    lines = out.splitlines()
    assert lines[0] == answer.text
    assert f"{answer.kept} of {answer.total} kept" in out
    assert "12 frames" in out
    for stage in ("decode", "prepare", "vision", "policy", "prefill", "generation"):
        assert re.search(rf"{stage} [\d.]+ m?s", out)
    assert (UNTRAINED in out) == (ratio == "0.25")


def test_a_budget_that_the_policy_decides(run):
    arguments = ("ask", "clip.mp4", QUESTION, "--model", "llava_onevision", "--retention-ratio")
    assert "24 of 48 kept" in run(*arguments, "auto:0.5:0.5")[1]
    assert re.search(r"tokens  (\d|1[0-2]) of 48 kept", run(*arguments, "auto")[1])
    assert "neither a number nor auto:FLOOR:CAP" in run(*arguments, "auto:0.5")[2]


def test_options_reach_the_model(run):
    arguments = ("ask", "clip.mp4", QUESTION, "--model", "llava_onevision", "--retention-ratio", 0.5)
    outs = [run(*arguments, *more)[1] for more in ((), ("--num-frames", 4), ("--compressor", "uniform"))]
    assert "24 of 48 kept (50.0%), 12 frames" in outs[0]
    assert "8 of 16 kept (50.0%), 4 frames" in outs[1]
    assert UNTRAINED in outs[0]
    assert UNTRAINED not in outs[2]
    long, short = (run(*arguments, "--max-new-tokens", n)[1].splitlines()[0] for n in (6, 2))
    assert long.startswith(short)
    assert len(long.split()) > len(short.split())


def test_save_map(run, tmp_path):
    pictures = []
    for ratio in ("0.5", "0.1"):
        target = tmp_path / f"{ratio}.png"
        status, out, err = run(
            "ask", "clip.mp4", QUESTION, "--model", "llava_onevision", "--retention-ratio", ratio, "--save-map", target
        )
        assert (status, err) == (0, "")
        assert str(target) in out
        with Image.open(target) as image:
            assert image.format == "PNG"
            assert image.width > 1000
            pictures.append(np.asarray(image.convert("RGB")))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert sorted(os.listdir(tmp_path)) == ["0.1.png", "0.5.png"]


ASK = ("ask", "clip.mp4", QUESTION, "--model", "llava_onevision")
BAD_INPUT = {
    "no question": (("ask", "clip.mp4"), "Missing argument"),
    "no such command": (("answer",), "No such command 'answer'"),
    "no such option": ((*ASK, "--ratio", "1"), "No such option"),
    "empty question": (("ask", "clip.mp4", " ", "--model", "llava_onevision"), "The question is empty"),
    "missing file": (("ask", "gone.mp4", QUESTION, "--model", "llava_onevision"), "gone.mp4 does not exist"),
    "folder": (("ask", ".", QUESTION, "--model", "llava_onevision"), ". is not a file"),
    "text": (("ask", "text.mp4", QUESTION, "--model", "llava_onevision"), "text.mp4 is not a readable video"),
    "empty file": (("ask", "empty.mp4", QUESTION, "--model", "llava_onevision"), "empty.mp4 is empty"),
    "truncated": (("ask", "cut.mp4", QUESTION, "--model", "llava_onevision"), "cut.mp4 is not a readable video"),
    "audio": (("ask", "sound.mp4", QUESTION, "--model", "llava_onevision"), "sound.mp4 has no video track"),
    "ratio 0": ((*ASK, "--retention-ratio", "0"), "--retention-ratio=0.0 is outside (0, 1]"),
    "ratio 1.1": ((*ASK, "--retention-ratio", "1.1"), "--retention-ratio=1.1 is outside (0, 1]"),
    "ratio nan": ((*ASK, "--retention-ratio", "nan"), "--retention-ratio=nan is outside (0, 1]"),
    "ratio abc": ((*ASK, "--retention-ratio", "abc"), "--retention-ratio='abc' is not a number"),
    "compressor": ((*ASK, "--compressor", "nothing"), "compressor='nothing' is unknown: choose one of "),
    "compressor with a typing error": ((*ASK, "--compressor", "DivPrun"), "is unknown: did you mean divprune?"),
    "setting of a compressor": ((*ASK, "--compressor", "fastv:foo=1"), "'foo=1' is not a setting of fastv"),
    "no name of a file": (("ask", "", QUESTION), "'' does not exist: check the path"),
    "address of another kind": (("ask", "ftp://a/b.mp4", QUESTION), "ftp addresses are not read"),
    "ratio in percent": ((*ASK, "--retention-ratio", "25%"), "--retention-ratio='25%' is not a number"),
    "num-frames 0": ((*ASK, "--num-frames", "0"), "num_frames=0"),
    "num-frames abc": ((*ASK, "--num-frames", "abc"), "--num-frames"),
    "max-new-tokens 0": ((*ASK, "--max-new-tokens", "0"), "max_new_tokens=0"),
    "map without folder": ((*ASK, "--save-map", "gone/map.png"), "No map can be written to gone/map.png"),
    "map below a file": ((*ASK, "--save-map", "text.mp4/map.png"), "No map can be written to text.mp4/map.png"),
    "map on a folder": ((*ASK, "--save-map", "."), "give a name that ends in .png"),
    "map of another type": ((*ASK, "--save-map", "map.jpg"), "give a name that ends in .png"),
    "missing model": (
        ("ask", "clip.mp4", QUESTION, "--model", "./gone"),
        "./gone cannot be loaded (there is no such folder here)",
    ),
    "video for a model": (
        ("ask", "clip.mp4", QUESTION, "--model", "clip.mp4"),
        "clip.mp4 cannot be loaded (it is a file)",
    ),
    "no model in it": (("ask", "clip.mp4", QUESTION, "--model", "no model"), "no model cannot be loaded"),
    "unreachable id": (("ask", "clip.mp4", QUESTION, "--model", "nobody/nothing"), "nobody/nothing cannot be loaded"),
    "revision of a folder": ((*ASK, "--revision", "v2"), "revision='v2' is for a Hub id, and llava_onevision is a"),
    "family": (("ask", "clip.mp4", QUESTION, "--model", "bert"), "Backbone family 'bert' is not supported"),
    "no name of a model": (("ask", "clip.mp4", QUESTION, "--model", ""), "'' cannot be loaded"),
    "a file for a model": (("ask", "clip.mp4", QUESTION, "--model", "text.mp4"), "text.mp4 cannot be loaded"),
    "config that is missing": (("train", "gone.yaml"), "gone.yaml does not exist: give a YAML file"),
    "folder for a config": (("train", "bert"), "bert is not a file: give a YAML file"),
    "video for a config": (("train", "clip.mp4"), "clip.mp4 is not YAML ("),
    "samples that are missing": (("blind-filter", "gone.jsonl", "out.jsonl"), "gone.jsonl is not a file"),
    "video for samples": (("blind-filter", "clip.mp4", "out.jsonl"), "is not a .json or .jsonl file: give one"),
    "folder without samples": (("blind-filter", "no model", "out.jsonl"), "SAMPLES: no model cannot be read as a data"),
    "run below a file": (
        ("evaluate", "--output", "text.mp4/a.json"),
        "text.mp4 cannot be used (File exists): check the",
    ),
    "run that is a folder": (("evaluate", "--output", "bert"), "a run is written as JSON"),
    "report of nothing": (("report", "gone.json"), "gone.json cannot be read"),
    "report of a folder": (("report", "bert"), "bert cannot be read"),
    "host that is none": (("serve", "--host", "a.invalid"), "a.invalid:8000 cannot be listened at ("),
    "folder of films": (("serve", "--allowed-local-media-path", "gone"), "gone is not a folder"),
    "stream that cannot be saved": (("watch", "clip.mp4", "--save", "gone/a"), "No stream can be written to gone/a"),
    "stream for a folder": (("watch", "./gone.mp4", "--save", "bert"), "bert is a folder, so no stream can be written"),
    "endless memory": (("watch", "clip.mp4", "--max-memory", "1e400"), "--max-memory='1e400' is not a number of"),
    "watch without room": (("watch", "clip.mp4", "--max-new-tokens", "0", "--ask", "?"), "--max-new-tokens"),
    "question that is empty": (("ask", "clip.mp4", " ", "--model", "./gone"), "The question is empty: ask something"),
    "answer without room": ((*ASK[:3], "--model", "./gone", "--max-new-tokens", "0"), "leaves no room for an answer"),
    "samples that are there": (
        ("blind-filter", "gone.jsonl", "text.mp4", "--model", "./gone"),
        "text.mp4 exists: choose",
    ),
    "ratio without scores": (
        ("serve", "--compressor", "divprune", "--retention-ratio", "auto"),
        "'divprune' has no scores to decide a budget by",
    ),
    "memory of a stream": (("watch", "clip.mp4", "--memory", "x"), "memory='x' is unknown: choose 'features' or"),
    "demo without questions": (("demo", "--num-questions", "0"), "--num-questions"),
    "demo with a bad map": (("demo", "--save-map", "gone/map.png"), "No map can be written to gone/map.png"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(run, folder, name):
    arguments, message = BAD_INPUT[name]
    before = sorted(os.listdir(folder))
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("cacovid: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert sorted(os.listdir(folder)) == before


def test_a_port_in_use_is_refused_before_a_model_is_loaded(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, _, err = run("serve", "./gone", "--port", port)
    assert err.startswith(f"cacovid: error: 127.0.0.1:{port} cannot be listened at (Address already in use): choose")


def test_a_method_without_a_ratio(run):
    """It drops nothing, and that is said."""
    _, out, err = run(*ASK, "--compressor", "uniform")
    assert "48 of 48 kept" in out
    assert err == NOTHING_DROPPED


@pytest.mark.parametrize(
    ("ratio", "kept"), [("0.25", r"24 of 48 kept as a mean over the layers \(50.0%\)"), ("1.0", r"48 of 48 kept \(100")]
)
def test_a_method_inside_the_language_model(run, ratio, kept):
    """Its tokens are those that the layers see, as a mean: of two layers, behind the cut, 12 of 48 in one or both."""
    _, out, _ = run(*ASK, "--compressor", "fastv:layer=1:ratio_of=kept", "--retention-ratio", ratio)
    assert re.search(kept, out), out


def test_settings_of_a_method(run):
    """Behind its name, as in `cacovid evaluate`."""
    ask = (*ASK, "--retention-ratio", "0.1", "--max-new-tokens", 12, "--compressor")
    answers = {run(*ask, name)[1].splitlines()[0] for name in ("random", "random:seed=0", "random:seed=3")}
    assert len(answers) == 2


def test_a_map_is_refused_before_a_model_is_loaded(run):
    """Even a model that is not there."""
    _, _, err = run("ask", "clip.mp4", QUESTION, "--model", "./gone", "--save-map", "gone/map.png")
    assert "No map can be written" in err


def test_a_video_is_refused_before_the_weights_are_read(run, folder, tmp_path):
    for name in (
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        (tmp_path / name).write_bytes((folder / "llava_onevision" / name).read_bytes())
    _, _, err = run("ask", "text.mp4", QUESTION, "--model", tmp_path)
    assert "text.mp4 is not a readable video" in err
    _, _, err = run("ask", "clip.mp4", QUESTION, "--model", tmp_path)
    assert err.startswith("cacovid: error: ")
    assert "safetensors" in err


def test_without_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run(*ASK, "--save-map", "map.png")
    assert status == 2
    assert err == f"cacovid: error: Drawing a map needs matplotlib: {pip_install('demo')}\n"


def test_help_and_version(run):
    status, out, err = run("--version")
    assert (status, out, err) == (0, f"cacovid-hf {__version__}\n", "")
    for arguments in ((), ("--help",)):
        status, out, err = run(*arguments)
        assert (status, err) == (0, "")
        assert "ask" in out
        assert "demo" in out
    _, out, _ = run("ask", "--help")
    for option in (
        "--model",
        "--revision",
        "--retention-ratio",
        "--num-frames",
        "--max-new-tokens",
        "--save-map",
        "--compressor",
    ):
        assert option in re.sub(r"\x1b\[[0-9;]*m", "", out)


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from cacovid_cli.main import main\n"
        "try:\n    main(['ask', '--help'])\n"
        "except SystemExit:\n"
        "    print({'torch', 'transformers', 'av', 'matplotlib', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--retention-ratio" in re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert result.stderr == "set()\n"


def test_as_a_process(folder):
    """Through the interpreter, with whatever libraries print on the way in."""
    result = in_a_process("ask", "text.mp4", QUESTION, "--model", "llava_onevision", cwd=folder)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("cacovid: error: text.mp4 is not a readable video")
    assert "Traceback" not in result.stderr


# ---------------------------------------------------------------- the model inside the package


def test_the_embedded_model_answers_by_default(run):
    clip = tiny.clips()[0]
    question = clip.questions[0]
    status, out, err = run("ask", clip.path, f"{question.text.capitalize()}?")
    assert (status, err) == (0, f"{NOTHING_DROPPED}note    {EMBEDDED}\n")
    assert out.splitlines()[0] == question.answer
    assert "288 of 288 kept (100.0%), 8 frames" in out


def test_demo(run, tmp_path):
    question = tiny.clips()[0].questions[0]
    status, out, err = run("demo", "--num-questions", 24, "--seed", 7, "--save-map", tmp_path / "map.png")
    assert (status, err) == (0, "")
    assert f"question  {question.text}\nexpected  {question.answer}\n" in out
    assert "accuracy on 24 fresh questions" in out
    rows = {line.split()[0]: line for line in out.splitlines() if re.match(r"\d\.\d\d ", line)}
    assert list(rows) == ["1.00", "0.25"]
    assert re.match(rf"1\.00 +{question.answer} +288 of 288 ", rows["1.00"])
    assert "72 of 288" in rows["0.25"]
    model, processor = load_model(tiny.model_path()), load_processor(tiny.model_path())
    for ratio, row in rows.items():
        measured = answer_accuracy(model, processor, num_questions=24, seed=7, retention_ratio=float(ratio))
        assert row.endswith(f"{measured.accuracy:.1%} ± {measured.standard_error:.1%}")
    assert float(rows["1.00"].split()[-3].rstrip("%")) > 85
    assert (UNTRAINED in out) == (not model.config.policy_trained)
    # The picture of the pages is what the code draws today, but for how letters are smoothed.
    documented = Path(__file__).resolve().parents[2] / "docs" / "images" / "map.png"
    with Image.open(tmp_path / "map.png") as image, Image.open(documented) as shown:
        assert image.format == "PNG"
        assert image.size == shown.size
        drawn, expected = (np.asarray(one.convert("RGB"), dtype=int) for one in (image, shown))
    assert (np.abs(drawn - expected).max(-1) > 24).mean() < 0.02  # words of an older matplotlib are 0.01


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_demo_counts_its_questions_on_a_terminal(run, monkeypatch):
    """On stderr; what it prints is the same."""
    _, silent, _ = run("demo", "--num-questions", 4)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    status, out, _ = run("demo", "--num-questions", 4)
    assert (status, out) == (0, silent)
    for ratio in ("1.0", "0.25"):
        bar = rf"Asking at retention ratio {ratio}: +\d+%\|"
        assert re.search(rf"{bar} +\| 0/4 ", terminal.getvalue())
        assert re.search(rf"{bar}#+\| 4/4 ", terminal.getvalue())


def test_a_package_that_is_missing_comes_with_its_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cacovid_hf.training.from_yaml", None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "config.yaml"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("cacovid: error: ")
    assert error.endswith(f": {pip_install('train')}\n")
