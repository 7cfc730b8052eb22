"""What CONTRIBUTING says of the house is how the house stands: its tree, the order of its rooms, and the files that it names."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "cacovid_hf"
# What a writer makes, and what only examples name.
MADE = re.compile(r"my_\w+")


def test_the_tree_names_every_room():
    tree = PAGE.partition("```\nsrc/cacovid_hf/\n")[2].partition("src/cacovid_cli/")[0]
    named = {name for line in tree.splitlines() for name in re.findall(r"(?<=  )(\w+(?:/|\.py))", line)}
    rooms = {f"{room.name}/" for room in SOURCE.iterdir() if (room / "__init__.py").exists()}
    assert named == rooms | {file.name for file in SOURCE.glob("*.py") if not file.name.startswith("__")}


def test_the_order_is_that_of_the_contract():
    sentence = PAGE.partition("Imports run one way, from the ground up: ")[2].partition(".\n")[0].partition(". ")[0]
    told = [set(re.findall(r"`(\w+)`", floor)) for floor in sentence.split(" < ")[:-1]]
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition('"Every room stands')[2]
    floors = ast.literal_eval(contract.partition("layers = ")[2].partition("]")[0] + "]")
    held = [set(floor.split(" | ")) for floor in reversed(floors) if floor != "__main__"]
    assert told == held


def test_every_file_it_names_exists():
    paths = re.findall(r"`((?:src|tests|docs|scripts|benchmarks)/[\w/.]+\.\w+)`", PAGE)
    commands = re.findall(r"(?:pytest|python3?) ((?:tests|scripts)/[\w/. ]+)", PAGE)
    named = [*paths, *(word for command in commands for word in command.split() if "/" in word)]
    assert len(named) > 20
    assert [path for path in named if not MADE.search(path) and not (ROOT / path).exists()] == []
