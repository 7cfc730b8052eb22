"""Write files under a temporary name first, so that nothing is ever half written."""

import os
import shutil
import uuid
from pathlib import Path


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Make a folder of text files."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


class replaced:
    """A temporary path beside `path`, which takes its place when the block ends well and is removed when it does not.

    A file: readers see the old one or the new one, never half of one, and a process that is killed leaves the old one.
    A folder: the old one steps aside first, so that a process killed between the two steps leaves none under the name.
    Checkpoints are therefore saved by `utils.staging`. Nothing is promised for a power failure, because no data are forced to disk.

    Args:
        path: a file or a folder, there or not; its parent must be there. The block makes the one or the other at the temporary path.
    """

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.{uuid.uuid4().hex}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, error_type, error, trace) -> None:
        try:
            if error_type is None:
                # A folder cannot be replaced in one step: the old one steps aside until the new one stands.
                aside = self.temporary.with_name(f"{self.temporary.name}.old")
                was_folder = self.path.is_dir()
                if was_folder:
                    os.replace(self.path, aside)
                os.replace(self.temporary, self.path)
                if was_folder:
                    shutil.rmtree(aside)
        finally:
            if self.temporary.is_dir():
                shutil.rmtree(self.temporary, ignore_errors=True)
            else:
                self.temporary.unlink(missing_ok=True)
