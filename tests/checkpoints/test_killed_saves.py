"""A checkpoint that is saved over another is the old one or the new one, whatever ends the save."""

import json
import os
import random
import resource
import shutil
import signal
import time

import pytest
from helpers.killed_saves import clean_processes, model, parts, save_until
from transformers import AutoModelForImageTextToText

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.utils.staging import KEY

# Of a save over a checkpoint: the card inside the hidden folder; config.json, the decision; auto file, card and weights; config.json without
# the hidden folder's name. A backbone takes two more, because the old folder steps aside.
RENAMES = {False: 6, True: 8}


@pytest.fixture(scope="module")
def versions():
    return {version: model(version) for version in ("old", "new")}


@pytest.fixture(scope="module")
def older(versions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    for include_backbone in (False, True):
        place = folder / str(include_backbone)
        versions["old"].save_pretrained(place, include_backbone=include_backbone)
        (place / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def processes():
    with clean_processes() as context:
        yield context


def killed(processes, *arguments):
    process = processes.Process(target=save_until, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def check(folder, include_backbone, versions, expected=None):
    """Old or new, and whole after the next save, which leaves nothing of the earlier one."""
    found = parts(folder, include_backbone, versions)
    assert found in ([{"old"}, {"new"}] if expected is None else [{expected}]), found
    assert (folder / "notes.txt").read_text() == "mine"
    versions["new"].save_pretrained(folder, include_backbone=include_backbone)
    assert parts(folder, include_backbone, versions) == {"new"}
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert KEY not in json.loads((folder / "config.json").read_text())
    return found


def at_rename(processes, older, versions, folder, include_backbone, rename, after):
    shutil.copytree(older / str(include_backbone), folder)
    assert killed(processes, folder, include_backbone, rename, after) == -signal.SIGKILL
    # The second rename decides.
    expected = "new" if rename > 2 or (rename == 2 and after) else "old"
    check(folder, include_backbone, versions, expected)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("include_backbone", "rename", "after"),
    [(False, 2, False), (False, 2, True), (False, 5, False), (True, 2, True), (True, 5, True), (True, 8, False)],
)
def test_killed_at_a_rename(processes, older, versions, tmp_path, include_backbone, rename, after):
    at_rename(processes, older, versions, tmp_path / "m", include_backbone, rename, after)


@pytest.mark.slow
@pytest.mark.parametrize("include_backbone", [False, True])
def test_killed_at_every_rename(processes, older, versions, tmp_path, include_backbone):
    for rename in range(1, RENAMES[include_backbone] + 1):
        for after in (False, True):
            at_rename(processes, older, versions, tmp_path / "m", include_backbone, rename, after)
    shutil.copytree(older / str(include_backbone), tmp_path / "m")
    assert killed(processes, tmp_path / "m", include_backbone, RENAMES[include_backbone] + 1, False) == 0


@pytest.mark.slow
@pytest.mark.parametrize("include_backbone", [False, True])
def test_killed_at_random_times(processes, older, versions, tmp_path, include_backbone):
    chance, counts = random.Random(0), {"old": 0, "new": 0}
    folder = tmp_path / "m"

    def run(seconds):
        shutil.copytree(older / str(include_backbone), folder)
        ready = processes.Event()
        process = processes.Process(target=save_until, args=(folder, include_backbone, None, False, ready))
        process.start()
        ready.wait()
        started = time.perf_counter()
        if seconds is not None:
            time.sleep(seconds)
            process.kill()
        process.join()
        return time.perf_counter() - started

    whole = run(None)
    shutil.rmtree(folder)
    for _ in range(200):
        run(chance.uniform(0, whole))
        (version,) = check(folder, include_backbone, versions)
        counts[version] += 1
        shutil.rmtree(folder)
    print(f"killed within {whole:.3f} s: {counts}")


def test_a_killed_save_loads_by_every_way(processes, older, versions, tmp_path):
    """By the Auto class and from a copy; the old folder `backbone` is a stock checkpoint until the new one takes its place."""
    shutil.copytree(older / "True", tmp_path / "m")
    assert killed(processes, tmp_path / "m", True, 2, True) == -signal.SIGKILL
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "copy")
    assert loaded.config.retention_ratio == 0.5
    assert KEY not in loaded.config.to_dict()
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "m" / "backbone")
    assert stock.lm_head.weight.equal(versions["old"].backbone.lm_head.weight)
    (hidden,) = (name for name in os.listdir(tmp_path / "copy") if name.startswith(".saving"))
    shutil.rmtree(tmp_path / "copy" / hidden)
    with pytest.raises(ValueError, match=f"lacks its hidden folder {hidden}"):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "copy")
    for bad in ("../elsewhere", ".saving-", 3):
        config = json.loads((tmp_path / "copy" / "config.json").read_text())
        (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, KEY: bad}))
        with pytest.raises(ValueError, match="which is not a folder that this package writes"):
            CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "copy")


def save_with_limit(folder, include_backbone, limit, answer):
    made = model("new")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        made.save_pretrained(folder, include_backbone=include_backbone)
    except Exception as error:
        answer.put((type(error).__name__, str(error)))
    else:
        answer.put(None)


@pytest.mark.parametrize("include_backbone", [False, True])
@pytest.mark.parametrize("limit", [500, 20_000])
def test_a_full_disk_leaves_the_old_checkpoint(processes, older, tmp_path, include_backbone, limit):
    """The limit on a file's size stops the real writers: of config.json, and of the weights."""
    folder = tmp_path / "m"
    shutil.copytree(older / str(include_backbone), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = processes.Queue()
    process = processes.Process(target=save_with_limit, args=(folder, include_backbone, limit, answer))
    process.start()
    kind, message = answer.get(timeout=120)
    process.join()
    assert kind == "OSError"
    assert message.startswith(f"The checkpoint cannot be written to {folder} (")
    assert "File too large" in message
    assert message.count("\n") == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
