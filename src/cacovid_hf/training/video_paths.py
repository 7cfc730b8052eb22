"""Where a sample's video may lie: training data is often from others, and its paths must not lead to other files of the user."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from ..utils.values import shortened

_ADDRESSES = ("http://", "https://", "data:")


def video_path(
    address: str | os.PathLike, root: str | os.PathLike = "", allowed_roots: Sequence[str | os.PathLike] = ()
) -> str:
    """Return the path of a sample's video, or its address if that is not one of a file.

    Args:
        address: a path, absolute or from `root`; a `file:` address; or an `http:`, `https:` or `data:` address, which is given back.
        root: folder that relative paths start from, and that no path may leave; `""`: the working folder, which paths may leave.
        allowed_roots: folders beside it in which videos may lie. With these, no path may leave them without a root either.

    Raises:
        ValueError: the path leads out of these folders, also by `..` or by a symbolic link. The snapshot of a dataset in the cache of
            `huggingface_hub` links to files beside it, which count as within.
    """
    text = os.fspath(address)
    if text.lower().startswith(_ADDRESSES):
        return text
    given = (root, *allowed_roots) if os.fspath(root) else allowed_roots
    roots = [Path(folder).expanduser() for folder in given]
    path = Path(Path(root).expanduser(), _without_scheme(text))
    if roots and not any(_is_within(path, folder) for folder in roots):
        raise ValueError(
            f"{shortened(text)} leads out of {roots[0]}: move the video there, or name its folder in allowed_roots (data.allowed_roots of a config)."
        )
    return str(path)


def _without_scheme(address: str) -> str:
    if not address.lower().startswith("file:"):
        return address
    path = address[len("file:") :]
    if path.startswith("//"):
        path = path[2:].removeprefix("localhost")
    return path if os.path.lexists(path) else unquote(path)


def _is_within(path: Path, folder: Path) -> bool:
    real, inside = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(inside):
        return True
    # datasets--NAME/snapshots/REVISION/... links to datasets--NAME/blobs/...
    snapshots = next((part for part in (inside, *inside.parents) if part.parent.name == "snapshots"), None)
    return snapshots is not None and real.is_relative_to(snapshots.parent.parent / "blobs")
