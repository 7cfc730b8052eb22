"""The measures of the house: on a small tree worked out by hand, and on this repository."""

import importlib.util
import json
from pathlib import Path

import pytest

import cacovid_hf

ROOT = Path(__file__).resolve().parents[2]

spec = importlib.util.spec_from_file_location("measure_house", ROOT / "scripts" / "measure_house.py")
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)

TREE = {
    "__init__.py": "from .top import run\n",
    "top.py": "from .rooms import left\n\n\ndef run(past_key_values=None):\n    from .base import number\n    return past_key_values\n",
    "base.py": '''"""past_key_values in a docstring does not count."""
from dataclasses import dataclass


@dataclass
class Settings:
    contribution_share: float = 0.5


def number(contribution_share=1.0, *, frame_cap=2.0):
    return contribution_share


def check(ratio):
    if not 0 < ratio <= 1:
        raise ValueError(ratio)
    def listen(module):
        return module.register_forward_hook(print)
''',
    "rooms/__init__.py": "",
    "rooms/left.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .right import x\n",
    "rooms/right.py": "import cacovid_hf.rooms.left\nfrom ..base import check as x\n",
}


@pytest.fixture
def files(tmp_path):
    for name, text in TREE.items():
        path = tmp_path / "cacovid_hf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.modules(tmp_path)


def test_imports_of_every_kind_make_circles_and_chains(files):
    """left -> right is typed, right -> left plain: a circle of two. The chain goes root, top, both of them, base."""
    graph = house.imports(files)
    assert graph["cacovid_hf.top"] == {"cacovid_hf.rooms.left", "cacovid_hf.base"}
    assert house.circles(graph) == [["cacovid_hf.rooms.left", "cacovid_hf.rooms.right"]]
    assert house.longest_chain(graph) == [
        "cacovid_hf",
        "cacovid_hf.top",
        "cacovid_hf.rooms.left",
        "cacovid_hf.rooms.right",
        "cacovid_hf.base",
    ]
    assert house.rooms(graph) == {"__init__": {"top"}, "top": {"rooms", "base"}, "rooms": {"base"}, "base": set()}
    assert house.arrows_up(house.rooms(graph), {"top": 2, "rooms": 0, "base": 1}) == ["rooms -> base"]
    assert house.arrows_up(house.rooms(graph), {"top": 2, "rooms": 1, "base": 0}) == []


def test_names_and_defaults_are_found_in_the_code_alone(files):
    assert house.naming(files, lambda name: name == "past_key_values") == {"cacovid_hf.top": 2}
    assert house.naming(files, lambda name: name == "contribution_share") == {"cacovid_hf.base": 3}
    assert house.defaults(files, "contribution_share") == ["cacovid_hf.base: 0.5", "cacovid_hf.base: 1.0"]
    assert house.defaults(files, "frame_cap") == ["cacovid_hf.base: 2.0"]
    assert house.functions(files, house.knows_ratios) == ["cacovid_hf.base:check"]
    hooks = house.functions(files, lambda node: house.called(node) == "register_forward_hook")
    assert hooks == ["cacovid_hf.base:check.listen"]


def test_the_files_of_a_new_backbone_are_those_of_the_tables():
    family, language_model = house.contributing_files()
    assert {"src/cacovid_hf/backbones/my_model.py", "docs/reference/backbones.md", "README.md"} < set(family)
    assert "src/cacovid_hf/processing.py" in family
    assert "src/cacovid_hf/policies/rotary.py" in language_model


def test_this_house_has_no_circle_and_no_arrow_that_runs_back_up(monkeypatch, capsys, tmp_path):
    """The traced call runs in this process here, with torch imported already."""
    installed = Path(cacovid_hf.__file__).resolve().parents[1]
    monkeypatch.setattr(house, "traced_generate", lambda source: house.trace(installed))
    monkeypatch.setattr(house, "contract", lambda source: "run by tests/test_architecture.py")
    house.main(["--output", str(tmp_path / "house.json")])
    measures = json.loads((tmp_path / "house.json").read_text())
    assert measures["circles of files"] == measures["circles of rooms"] == measures["arrows up"] == []
    assert len(measures["modules at the root"]) <= 10
    assert len(measures["longest import chain"]) <= 15
    traced = measures["traced generate"]
    assert {"cacovid_hf/ratio.py", "cacovid_hf/compressors/cacovid.py"} <= set(traced["files"])
    assert traced["changes_of_file"] >= len(traced["files"])
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["| measure | value |", "|---|---|"]
    assert len(told) == 2 + len(measures)
