"""Tests run offline and on one seed."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

# Tiny tensors: a second thread costs more than it brings, and workers share the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Tests marked gpu say why they cannot run where there is no device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish():
    """Garbage collections leave out the libraries, whose millions of objects stay anyway; each of all took half a second."""
    gc.collect()
    gc.freeze()
