"""Several files of a folder replaced as one: whatever kills the writer, a reader finds all the old files or all the new ones.

New files are written into a hidden folder inside the folder. One rename decides, that of `config.json`, which from then on names the hidden
folder. Readers look for every file there first. Then the files move to their places, and `config.json` loses the name again.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DECIDES = "config.json"
KEY = "unfinished_save"
_NAME = re.compile(r"\.saving-[0-9a-f]{32}")


def staging_folder(config: Mapping[str, Any]) -> str | None:
    """Name of the hidden folder whose files count before the others, by the content of `config.json`; None if the save was finished.

    Raises:
        ValueError: the name is not one that `replaced_together` gives.
    """
    name = config.get(KEY)
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(
            f"{DECIDES} says {KEY}={name!r}, which is not a folder that this package writes: do not use this checkpoint."
        )
    return name


@contextmanager
def replaced_together(folder: Path) -> Iterator[Path]:
    """Return a new folder, whose files and folders take the places of those in `folder` together when the block ends well.

    One of them must be `config.json`, a JSON object. What else lies in `folder` stays. A save that was killed before is finished or removed.

    Args:
        folder: made if missing; one writer at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finish(folder)
    staged = folder / f".saving-{uuid.uuid4().hex}"
    staged.mkdir()
    try:
        yield staged
        config = json.loads((staged / DECIDES).read_text(encoding="utf-8"))
        marked = staged / f"{DECIDES}.marked"
        marked.write_text(json.dumps({**config, KEY: staged.name}, indent=2), encoding="utf-8")
        os.replace(marked, folder / DECIDES)
        finish(folder)
    finally:
        if _named_by(folder) != staged.name:
            shutil.rmtree(staged, ignore_errors=True)


def finish(folder: Path) -> None:
    """Finish the save that was killed after its decision, if there is one, and remove what others left."""
    if (name := _named_by(folder)) is not None and (staged := folder / name).is_dir():
        for new in sorted(staged.iterdir()):
            if new.name != DECIDES and not _NAME.fullmatch(new.name):
                _move(new, folder / new.name, staged / f".saving-{uuid.uuid4().hex}")
        os.replace(staged / DECIDES, folder / DECIDES)
    for leftover in folder.glob(".saving-*"):
        if _NAME.fullmatch(leftover.name) and leftover.name != _named_by(folder):
            shutil.rmtree(leftover, ignore_errors=True)


def _move(new: Path, place: Path, aside: Path) -> None:
    """Put `new` at `place`; a folder cannot be replaced in one step, so the old one steps aside."""
    if os.path.lexists(place) and (new.is_dir() or place.is_dir()):
        os.replace(place, aside)
    os.replace(new, place)


def _named_by(folder: Path) -> str | None:
    try:
        return staging_folder(json.loads((folder / DECIDES).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # there is none, or it is damaged and about to be replaced
