"""Fixtures of the tests of evaluation."""

import shutil

import pytest
from helpers.sweeps import BASE

from cacovid_hf.evaluation.sweep import evaluate


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run from beginning to end, in one process: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, evaluate(BASE, folder / "run.json")


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run to change."""
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy" / "run.json"
