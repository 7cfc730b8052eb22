"""Writes `custom_generate/` of a checkpoint: the modules behind `remote.py`, flat and self-contained, generated from this package's sources.

transformers copies a repository's `custom_generate/generate.py`, and what it imports by `from .name import`, into one flat folder. So every module of
this package that `remote.py` needs becomes one file there: `backbones/base.py` is `backbones_base.py`, its relative imports are rewritten, blocks
for type checkers are left out, and nothing else is changed.
"""

import ast
import importlib.metadata
import json
import re
import subprocess
from pathlib import Path

from ..utils.version import VERSION

FOLDER, ENTRY = "custom_generate", "hub.remote"
REQUIREMENTS = "torch>=2.11\ntransformers>=5.17\nsafetensors>=0.8\nnumpy>=1.26\n"
_PACKAGE = Path(__file__).resolve().parent.parent
_STAMP = re.compile(r'^(REPOSITORY|REVISION): str \| None = (None|"[^"\n]*")$', re.MULTILINE)


def generated_files(repository: str | None = None, revision: str | None = None) -> dict[str, str]:
    """Text of every file of `custom_generate/`, by name.

    Args:
        repository: Hub id or folder of the checkpoint whose policy the code loads unless it is told another.
        revision: the commit that holds this policy.

    Raises:
        ValueError: a module imports in a way that the flat layout does not have.
    """
    files = {"requirements.txt": REQUIREMENTS}
    waiting, commit = [ENTRY], package_commit()
    while waiting:
        module = waiting.pop()
        if _file_name(module) in files:
            continue
        text, needed = flattened(module)
        files[_file_name(module)] = _header(module, commit) + text
        waiting += needed
    files["generate.py"] = stamped(files["generate.py"], repository, revision)
    return files


def stamped(text: str, repository: str | None, revision: str | None) -> str:
    """`generate.py` with the place of its policy written into it."""
    values = {"REPOSITORY": repository, "REVISION": revision}

    def line(match: re.Match) -> str:
        value = values[match[1]]
        return f"{match[1]}: str | None = {'None' if value is None else json.dumps(value)}"

    return _STAMP.sub(line, text)


def stamp_of(text: str) -> tuple[str | None, str | None]:
    """Repository and revision that are written into a `generate.py`."""
    found = {name: json.loads(value.replace("None", "null")) for name, value in _STAMP.findall(text)}
    return found.get("REPOSITORY"), found.get("REVISION")


def flattened(module: str) -> tuple[str, list[str]]:
    """Return a module's source for the flat layout, and which modules it imports; modules by dotted name inside the package."""
    path = _path(module)
    source = path.read_text(encoding="utf-8")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    lines = source.splitlines(keepends=True)
    needed = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)  # type: ignore[operator]
        elif isinstance(node, ast.ImportFrom) and node.level:
            if lines[node.lineno - 1] == "":  # in a block that was left out
                continue
            parents = package.split(".") if package else []
            target = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            if node.module is None or not _path(target).is_file():
                raise ValueError(
                    f"{path}, line {node.lineno}: a module that goes into custom_generate imports names from modules, by `from .module import name`."
                )
            place = re.compile(r"from\s+\.+[\w.]*")
            lines[node.lineno - 1] = place.sub(f"from .{_flat(target)}", lines[node.lineno - 1], count=1)
            needed.append(target)
    return "".join(lines), needed


def package_commit() -> str | None:
    """Return the commit of this package's sources: of the checkout that they lie in, or that pip installed from; None if neither is known."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        origin = importlib.metadata.distribution("cacovid-hf").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def _path(module: str) -> Path:
    folder = _PACKAGE.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _flat(module: str) -> str:
    return "generate" if module == ENTRY else module.replace(".", "_")


def _file_name(module: str) -> str:
    return f"{_flat(module)}.py"


def _header(module: str, commit: str | None) -> str:
    origin = f"cacovid-hf {VERSION}" + (f", commit {commit}" if commit else "")
    return f"# Generated from {_path(module).relative_to(_PACKAGE.parent).as_posix()} of {origin}; Apache-2.0. Do not edit.\n"
