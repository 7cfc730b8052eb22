"""What to install where an optional package is missing."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

_ROOT = Path(__file__).resolve().parents[3]


def pip_install(*extras: str) -> str:
    """Return the command that installs what some of this package's extras need.

    Where this package runs from a clone, it installs the clone with these extras; anywhere else it names the packages, so that it works wherever this
    one was installed from.
    """
    if (_ROOT / "pyproject.toml").is_file():
        return f'pip install -e "{_ROOT}[{",".join(extras)}]"'
    try:
        wanted = [Requirement(line) for line in metadata.requires("cacovid-hf") or ()]
    except metadata.PackageNotFoundError:  # its sources alone, as in a Space
        return f'pip install "cacovid-hf[{",".join(extras)}]"'
    names = []
    for extra in extras:
        for needed in wanted:
            if needed.marker and needed.marker.evaluate({"extra": extra}):
                needed.marker = None
                names.append(f'"{needed}"')
    return " ".join(["pip install", *dict.fromkeys(names)])
