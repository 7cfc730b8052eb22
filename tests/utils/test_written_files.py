"""Files that cannot be written: the error names the file, why and the remedy, and what was there before is still there."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from cacovid_hf.evaluation.logs import CellLog
from cacovid_hf.utils.files import named_if_full, replaced, write_files


@contextmanager
def full_disk(limit=100):
    """No file can grow over so many bytes: the writers of the system fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def said(path):
    return rf"^{path} cannot be written \(File too large\): free disk space, or choose a folder that can be written\.$"


def test_a_file_on_a_full_disk(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with full_disk(), pytest.raises(OSError, match=said(path)), replaced(path) as temporary:
        temporary.write_text("new" * 100)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_folder_on_a_full_disk(tmp_path):
    path = tmp_path / "clips"
    with full_disk(), pytest.raises(OSError, match=said(path)), replaced(path) as temporary:
        write_files(temporary, {"a": "new" * 100})
    assert os.listdir(tmp_path) == []


def test_a_file_takes_no_folders_place(tmp_path):
    """What the folder holds stays, and nothing is left beside it."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "kept").write_text("data")
    with pytest.raises(IsADirectoryError, match=f"^{folder} is a folder: give the name"), replaced(folder) as temporary:
        temporary.write_text("new")
    assert (folder / "kept").read_text() == "data"
    assert os.listdir(tmp_path) == ["results"]


def test_a_log_on_a_full_disk(tmp_path):
    """What was written before is read again."""
    log = CellLog(tmp_path, "cell")
    log.append([{"index": 0, "answer": "A"}], part=0)
    with full_disk(), pytest.raises(OSError, match=said(tmp_path / "cell.part0.jsonl")):
        log.append([{"index": 1, "answer": "B" * 200}], part=0)
    with full_disk(10), pytest.raises(OSError, match=said(log.path)):
        log.merge()
    assert log.read()[0] == {"index": 0, "answer": "A"}


def test_a_folder_that_is_missing(tmp_path):
    path = tmp_path / "none" / "run.json"
    with (
        pytest.raises(OSError, match=rf"^{path} cannot be written \(No such file or directory\): "),
        replaced(path) as it,
    ):
        it.write_text("new")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "video.mp4"), OSError("closed"), ValueError("x")]
)
def test_other_errors_stay(tmp_path, error):
    for block in (replaced(tmp_path / "a"), named_if_full(Path("a"))):
        with pytest.raises(type(error)) as caught, block:
            raise error
        assert caught.value is error
