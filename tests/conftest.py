"""Tests run offline and on one seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

# Tiny tensors: a second thread costs more than it brings, and workers share the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
