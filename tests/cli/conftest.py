"""Fixtures of the tests of `cacovid watch`."""

import pytest

from cacovid_cli.watch import watching
from cacovid_hf import tiny
from cacovid_hf.auto import load_model, load_processor


@pytest.fixture(scope="module")
def loaded():
    """The embedded model and its processor."""
    return load_model(tiny.model_path()), load_processor(tiny.model_path())


@pytest.fixture
def stream(loaded):
    """A stream of it, as `watch` sets it."""
    model, processor = loaded
    return model.stream(processor, **watching.EMBEDDED_SETTINGS)
