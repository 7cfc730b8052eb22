#!/usr/bin/env python3
"""How easily this code can be read, as a table: rooms, imports, one traced `generate`, and places that repeat each other.

    python scripts/measure_house.py [--source src] [--output house.json]

A room is a folder or a module at the root of the library. Typed imports and imports inside functions count.
Docstrings and comments do not.
"""

import argparse
import ast
import functools
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "cacovid_hf"
SETTING = "contribution_share"  # stands for any setting of the selection
FAMILY_NAMES = ("llava", "qwen")
CACHE_NAME = "past_key_values"
HOOK_CALLS = r"register_(module_)?(full_)?(forward|backward)(_pre)?_hook"
TRACED = ("check_retention_ratio", "grids", "AutoBudget", "token_budget")  # functions, or classes that are made
Graph = dict[str, set[str]]


# ---------------------------------------------------------------- files and imports


def modules(source: Path) -> dict[str, Path]:
    """Every module under `source`, by its dotted name; a package stands for its `__init__.py`."""
    found = {}
    for path in sorted(path for path in source.rglob("*.py") if "assets" not in path.parts):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: dict[str, Path]) -> Graph:
    """Which module imports which, wherever in the file the import stands."""
    graph: Graph = {name: set() for name in files}
    for name, path in files.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                wanted = [(alias.name, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                wanted = [(f"{base}.{alias.name}", base) for alias in node.names]
            else:
                continue
            graph[name] |= {next((known for known in pair if known in files), name) for pair in wanted}
        graph[name].discard(name)
    return graph


def room(module: str) -> str:
    """Return the room of a module: what follows the package's name; another package is one room."""
    first, *rest = module.split(".")
    return first if first != LIBRARY else rest[0] if rest else "__init__"


def rooms(graph: Graph) -> Graph:
    """Which room imports which."""
    found: Graph = {room(name): set() for name in graph}
    for name, targets in graph.items():
        found[room(name)] |= {room(target) for target in targets} - {room(name)}
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return groups of nodes that can reach each other, largest first."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted((sorted(group) for group in groups if len(group) > 1), key=len, reverse=True)


def reachable(graph: Graph, start: str) -> set[str]:
    """All that `start` imports, directly or not."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest way down; nodes of a circle count as many as they are, in any order."""
    members = {name: group for group in circles(graph) for name in group}

    @functools.cache
    def below(head: str) -> tuple[str, ...]:
        group = members.get(head, [head])
        outside = {members.get(t, [t])[0] for name in group for t in graph[name] if t not in group}
        return (*group, *max((below(target) for target in sorted(outside)), key=len, default=()))

    return list(max((below(members.get(name, [name])[0]) for name in sorted(graph)), key=len))


def order(pyproject: Path) -> dict[str, int]:
    """Return the height of every room by the import contract; empty without one. Rooms of one layer have one height."""
    text = pyproject.read_text(encoding="utf-8")
    found = re.search(r"containers = .*?layers = \[(.*?)\]", text, re.DOTALL)
    layers = re.findall(r'"([^"]+)"', found[1]) if found else []
    return {name.strip(): height for height, layer in enumerate(reversed(layers)) for name in re.split("[|:]", layer)}


def arrows_up(graph: Graph, heights: dict[str, int]) -> list[str]:
    """Return imports between rooms that run up the contract's order, or along one layer."""
    return [
        f"{one} -> {other}"
        for one, others in sorted(graph.items())
        for other in sorted(others)
        if one in heights and other in heights and heights[other] >= heights[one]
    ]


def contract(source: Path) -> str:
    """import-linter's verdict on the contract beside `source`."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=source.parent, env=environment, capture_output=True, encoding="utf-8"
    )
    verdict = re.search(r"Contracts: (.*)\.", run.stdout)
    return verdict[1] if verdict else (run.stderr.strip().splitlines() or ["no contract"])[-1]


# ---------------------------------------------------------------- names in the code


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the tree of a file, every docstring emptied."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            node.body[0] = ast.Pass()  # type: ignore[attr-defined]
    return tree


def names(node: ast.AST) -> Iterator[str]:
    """Return identifiers and whole strings of one node: names, attributes, arguments, keywords, definitions, imports, constants."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
    for field in ("id", "attr", "arg", "name"):
        value = node.__dict__.get(field)
        if isinstance(value, str):
            yield value


def naming(files: dict[str, Path], matches: Callable[[str], object]) -> dict[str, int]:
    """How many names of each module match; modules without any are left out."""
    counts = {}
    for name, path in files.items():
        counts[name] = sum(bool(matches(found)) for node in ast.walk(parsed(path)) for found in names(node))
    return {name: count for name, count in counts.items() if count}


def functions(files: dict[str, Path], matches: Callable[[ast.AST], bool]) -> list[str]:
    """Functions with a node that is as asked; of nested ones the innermost."""
    found = []
    for name, path in files.items():

        def visit(node: ast.AST, where: str, module: str = name) -> None:
            if matches(node):
                found.append(f"{module}:{where}")
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            for child in ast.iter_child_nodes(node):
                visit(child, f"{where}.{node.name}".strip(".") if inside else where)  # type: ignore[attr-defined]

        visit(parsed(path), "")
    return list(dict.fromkeys(found))


def called(node: ast.AST) -> str:
    """Return the last name of what a node calls; empty if it is not a call."""
    if not isinstance(node, ast.Call):
        return ""
    return ast.unparse(node.func).rpartition(".")[2]


def knows_ratios(node: ast.AST) -> bool:
    """Whether a node decides by itself what a ratio may be: a test for `AutoBudget`, for "auto", or against the bounds 0 and 1."""
    if called(node) == "isinstance":
        return "AutoBudget" in ast.unparse(node.args[1])  # type: ignore[attr-defined]
    if not isinstance(node, ast.Compare):
        return False
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
    bounded = any(not isinstance(test, (ast.Eq, ast.NotEq)) for test in node.ops) and {"0", "0.0", "1", "1.0"} & {
        *sides
    }
    about = any(re.search(r"ratios?\b", side) for side in sides)
    return about and bool(bounded or {"'auto'", "AUTO"} & {*sides})


def defaults(files: dict[str, Path], setting: str) -> list[str]:
    """Fields and parameters called `setting` with a literal default, as `module: value`."""
    found = []
    for name, path in files.items():
        for node in ast.walk(parsed(path)):
            pairs: list[tuple[str, ast.expr | None]] = []
            if isinstance(node, ast.AnnAssign):
                pairs = [(ast.unparse(node.target), node.value)]
            elif isinstance(node, ast.arguments):
                plain = [*node.posonlyargs, *node.args]
                pairs = [
                    (arg.arg, value)
                    for arg, value in zip(plain[len(plain) - len(node.defaults) :], node.defaults, strict=True)
                ]
                pairs += [(arg.arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            found += [
                f"{name}: {value.value}"
                for key, value in pairs
                if key == setting and isinstance(value, ast.Constant) and value.value is not None
            ]
    return found


def contributing_files() -> list[list[str]]:
    """Return the files that CONTRIBUTING tells the writer of a backbone to touch: of a family, of its video paths, of a new kind of language model."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Add a backbone")[2].partition("\n## ")[0]
    tables = section.split("| File | What |\n")[1:]
    rows = [itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()) for table in tables]
    return [re.findall(r"`([\w/]+\.\w+)`", " ".join(row.split("|")[1] for row in of_table)) for of_table in rows]


# ---------------------------------------------------------------- one traced call


def traced_generate(source: Path) -> dict[str, Any]:
    """Return what one `generate(retention_ratio=0.25)` of a tiny random model runs of the package, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(source.parent / "tests")])}
    program = [sys.executable, str(Path(__file__).resolve()), "--source", str(source), "--trace"]
    run = subprocess.run(program, env=environment, capture_output=True, encoding="utf-8")
    if run.returncode:
        raise RuntimeError(f"The traced generate failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def trace(source: Path) -> dict[str, Any]:
    """Run it here; the package and the builders of the tests' models must be importable."""
    from helpers.models import ONE_VIDEO, prompt_inputs, stock_model

    from cacovid_hf import CaCoVidForConditionalGeneration

    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, ONE_VIDEO)
    calls: list[tuple[str, str]] = []
    functions: set[tuple[str, str, int]] = set()

    def note(frame: Any, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(source)):
            owner = frame.f_locals.get("self")
            name = frame.f_code.co_name
            calls.append((file, type(owner).__name__ if name == "__post_init__" else name))
            if not name.startswith("<"):  # comprehensions
                functions.add((file, name, frame.f_code.co_firstlineno))

    sys.setprofile(note)
    try:
        model.generate(**inputs, retention_ratio=0.25, max_new_tokens=1, do_sample=False)
    finally:
        sys.setprofile(None)
    files = [file for file, _ in calls]
    times = [name for _, name in calls]
    return {
        "files": sorted({str(Path(file).relative_to(source)) for file in files}),
        "changes_of_file": sum(one != next for one, next in itertools.pairwise(files)),
        "calls": len(calls),
        "functions": len(functions),
        **{what: times.count(what) for what in TRACED},
    }


# ---------------------------------------------------------------- the table


def measure(source: Path) -> dict[str, Any]:
    """Every measure, with the names behind each count."""
    files = modules(source)
    graph = imports(files)
    library = {name: path for name, path in files.items() if name.split(".")[0] == LIBRARY}
    between = rooms({name: graph[name] & set(library) for name in library})
    builders = {f"tests/helpers/{name}": path for name, path in modules(source.parent / "tests" / "helpers").items()}
    families = [naming(files | builders, re.compile(family, re.IGNORECASE).search) for family in FAMILY_NAMES]
    return {
        "modules at the root": sorted(path.name for path in (source / LIBRARY).glob("*.py")),
        "rooms": sorted(between),
        "floors": longest_chain(between),
        "arrows up": arrows_up(between, order(source.parent / "pyproject.toml")),
        "circles of files": circles(graph),
        "circles of rooms": circles(between),
        "longest import chain": longest_chain(graph),
        "import contract": contract(source),
        "traced generate": traced_generate(source),
        "functions that know what a ratio may be": functions(library, knows_ratios),
        "files that name a selection setting": naming(files, lambda name: name == SETTING),
        "defaults of a selection setting": defaults(files, SETTING),
        "files that name transformers' cache argument": naming(files, lambda name: name == CACHE_NAME),
        "functions that register a hook": functions(files, lambda node: bool(re.fullmatch(HOOK_CALLS, called(node)))),
        "files that name both families": sorted(set.intersection(*map(set, families))),
        "files of a new backbone in CONTRIBUTING": contributing_files(),
    }


def table(measures: dict[str, Any]) -> str:
    """Return the measures as a table in Markdown."""
    lines = ["| measure | value |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {shown(name, value)} |" for name, value in measures.items())])


def shown(name: str, value: Any) -> str:
    """One cell: a count, where the names behind it do not say more."""
    if isinstance(value, str):
        return value
    if name == "traced generate":
        counts = [f"{what} {value[what]} times" for what in TRACED]
        sizes = [
            f"{len(value['files'])} files",
            f"{value['functions']} functions",
            f"{value['changes_of_file']} changes of file",
        ]
        return ", ".join([*sizes, *counts])
    if name == "functions that know what a ratio may be":
        return f"{len(value)} in {len({place.split(':')[0] for place in value})} files"
    if isinstance(value, dict):
        return f"{len(value)} ({sum(value.values())} places)"
    if name == "files of a new backbone in CONTRIBUTING":
        return " + ".join(str(len(files)) for files in value)
    if value and isinstance(value[0], list):
        return f"{len(value)} (of {', '.join(str(len(group)) for group in value)})"
    return str(len(value))


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write the measures with their names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="folder of the packages; tests/ beside it")
    parser.add_argument("--output", type=Path, help="JSON of every measure with the names behind it")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    source = options.source.resolve()
    if options.trace:
        print(json.dumps(trace(source)))
        return
    measures = measure(source)
    print(table(measures))
    if options.output:
        options.output.write_text(json.dumps(measures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
