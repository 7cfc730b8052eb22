"""The Space: pushed by its one command to a Hub on this machine, it holds all that its app needs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_server import OWNER, LoopbackHub
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "examples" / "space"
REPO = "owner/which-tokens"


def push(hub, tmp_path, *options):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": OWNER,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, str(SPACE / "push.py"), REPO, *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The files of the Space, after a second push over a file that is gone and one that a visitor added."""
    with LoopbackHub().running() as hub:
        tmp_path = tmp_path_factory.mktemp("space")
        assert re.fullmatch(rf"pushed: {REPO}, commit \w{{12}}\n", push(hub, tmp_path, "--private"))
        repository = hub.repositories[REPO]
        assert (repository.private, repository.sdk, len(repository.log)) == (True, "gradio", 2)
        hub.edit(REPO, "cacovid_hf/gone.py", b"")
        hub.edit(REPO, "notes.md", b"mine")
        push(hub, tmp_path)
        assert len(repository.log) == 5
        yield hub.files(REPO)


def test_what_is_pushed(pushed):
    sources = {path.relative_to(ROOT / "src").as_posix(): path for path in (ROOT / "src").rglob("*") if path.is_file()}
    sources = {name: path for name, path in sources.items() if "__pycache__" not in name}
    own = {name: SPACE / name for name in ("README.md", "app.py", "requirements.txt")}
    assert set(pushed) == {*sources, *own, ".gitattributes", "notes.md"}
    for name, path in (sources | own).items():
        assert pushed[name] == path.read_bytes(), name


def test_it_runs_from_what_was_pushed(pushed, tmp_path):
    """The command of the app, from the pushed files alone; without gradio as far as its sentence."""
    for name, data in pushed.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    program = (
        "import sys, cacovid_hf; assert cacovid_hf.__file__.startswith(sys.argv[1]); sys.modules['gradio'] = None\n"
        "exec(open('app.py').read())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert result.returncode == 2
    assert "needs gradio and matplotlib" in result.stderr


def test_requirements_are_those_of_the_package():
    quoted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def listed(name):
        return {
            str(Requirement(text))
            for text in ast.literal_eval(re.search(rf"^{name} = (\[.*?\n?\])", quoted, re.M | re.S)[1])
        }

    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    assert found == listed("dependencies") | listed("demo") | {str(Requirement("accelerate>=1.10"))}


def test_the_card():
    front = (SPACE / "README.md").read_text(encoding="utf-8").split("---")[1]
    values = dict(line.split(": ", 1) for line in front.splitlines() if ": " in line)
    assert values["sdk"] == "gradio"
    assert values["app_file"] == "app.py"
    assert len(values["short_description"]) <= 60
    demo = re.search(r'"gradio>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert Version(values["sdk_version"]) >= Version(demo)
