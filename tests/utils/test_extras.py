"""What an error says is to be installed is what the extras need, wherever this package came from."""

from importlib import metadata
from pathlib import Path

import pytest

from cacovid_hf.utils import extras

ROOT = Path(__file__).resolve().parents[2]
NEEDED = [
    "torch>=2.11",
    'accelerate>=1.10; extra == "eval"',
    'pyarrow>=17; extra == "eval"',
    'matplotlib>=3.8; extra == "eval"',
    'matplotlib>=3.8; extra == "demo"',
    'transformers[serving]<6,>=5.17; extra == "serve"',
    'tomli; extra == "demo" and python_version < "3"',
]


@pytest.mark.skipif(not Path(extras.__file__).is_relative_to(ROOT), reason="the package under test is not this clone's")
def test_in_a_clone():
    assert extras.pip_install("train", "eval") == f'pip install -e "{ROOT}[train,eval]"'


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (["demo"], 'pip install "matplotlib>=3.8"'),
        (["serve"], 'pip install "transformers[serving]<6,>=5.17"'),
        (["eval", "demo"], 'pip install "accelerate>=1.10" "pyarrow>=17" "matplotlib>=3.8"'),
    ],
)
def test_installed(monkeypatch, tmp_path, names, command):
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda name: {"cacovid-hf": NEEDED}[name])
    assert extras.pip_install(*names) == command


def test_sources_alone(monkeypatch, tmp_path):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(metadata, "requires", nothing)
    assert extras.pip_install("demo") == 'pip install "cacovid-hf[demo]"'
