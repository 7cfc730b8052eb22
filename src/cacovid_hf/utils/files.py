"""Write files under a temporary name first, so that nothing is ever half written."""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Make a folder of text files."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def check_writable(path: Path, what: str) -> None:
    """Refuse a file that cannot be written, before the work that makes its contents.

    Raises:
        IsADirectoryError: it is a folder.
        OSError: its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, so no {what} can be written there: give the name of a file.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"No {what} can be written to {path} ({error.strerror}): give a file in a folder that exists and can be written."
        ) from error


@contextmanager
def named_if_full(path: Path, written: Path | None = None) -> Iterator[None]:
    """Name the file in an error of the block that comes from writing it: a full disk says no name, and a temporary file another one.

    Args:
        path: that the caller knows.
        written: that the block writes, if it is another one.

    Raises:
        OSError: the file cannot be written, with the reason and the remedy; other errors as they are.
    """
    try:
        yield
    except OSError as error:
        own = error.errno in _FULL if error.filename is None else os.fspath(error.filename) == str(written or path)
        if not own:
            raise
        reason = error.strerror or str(error)
        raise OSError(
            f"{path} cannot be written ({reason}): free disk space, or choose a folder that can be written."
        ) from error


class replaced:
    """A temporary path beside `path`, which takes its place when the block ends well and is removed when it does not.

    A file: readers see the old one or the new one, never half of one, and a process that is killed leaves the old one.
    A folder: the old one steps aside first, so that a process killed between the two steps leaves none under the name.
    Checkpoints are therefore saved by `utils.staging`. Nothing is promised for a power failure, because no data are forced to disk.

    Args:
        path: a file or a folder, there or not; its parent must be there. The block makes the one or the other at the temporary path.

    Raises:
        IsADirectoryError: the block made a file, and a folder has its name; what it holds is not touched.
    """

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.{uuid.uuid4().hex}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, error_type, error, trace) -> None:
        try:
            with named_if_full(self.path, self.temporary):
                if isinstance(error, OSError):
                    raise error
                if error_type is None:
                    self._take_the_place()
        finally:
            if self.temporary.is_dir():
                shutil.rmtree(self.temporary, ignore_errors=True)
            else:
                self.temporary.unlink(missing_ok=True)

    def _take_the_place(self) -> None:
        # A folder cannot be replaced in one step: the old one steps aside until the new one stands.
        aside = self.temporary.with_name(f"{self.temporary.name}.old")
        was_folder = self.path.is_dir()
        if was_folder and not self.temporary.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder: give the name of a file.")
        if was_folder:
            os.replace(self.path, aside)
        os.replace(self.temporary, self.path)
        if was_folder:
            shutil.rmtree(aside)
