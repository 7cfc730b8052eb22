"""Tests run offline and on one seed."""

import gc
import os
from collections import defaultdict

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from helpers.models import FAMILIES, FIRST

from cacovid_hf._compat import older_transformers
from cacovid_hf.backbones import BACKBONES

FURTHER = FAMILIES[len(FIRST) :]

# Tiny tensors: a second thread costs more than it brings, and workers share the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Mark the cases of further families slow, except for those of a spread; tests marked gpu say why they cannot run where there is no device.

    The quick run takes the first two families through every test. Of the tests of a file marked `spread(n)` it takes each further family through one
    case in `n`, at least one, and each family through others. No other test takes a further family there.
    """
    cases: defaultdict[tuple[str, int, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if (family := further_family(item)) is not None:
            if marker := item.get_closest_marker("spread"):
                cases[item.nodeid.partition("::")[0], marker.args[0], family].append(item)
            else:
                item.add_marker(pytest.mark.slow)
    for (_, every, family), its_items in cases.items():
        for number, item in enumerate(its_items):
            if (number - FURTHER.index(family)) % min(every, len(its_items)):
                item.add_marker(pytest.mark.slow)
    for item in items:
        if reason := newer_transformers_wanted(item):
            item.add_marker(pytest.mark.skip(reason=reason))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def further_family(item):
    """The family that a case is about, if it is not one of the first two; else None."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec else ()
    return next((value for value in values if isinstance(value, str) and value in FURTHER), None)


def newer_transformers_wanted(item):
    """Why a case cannot run, if the installed transformers is older than its family needs; names may go on behind a comma."""
    callspec = getattr(item, "callspec", None)
    values = (
        [value.partition(",")[0] for value in callspec.params.values() if isinstance(value, str)] if callspec else []
    )
    families = [BACKBONES[value] for value in values if value in BACKBONES]
    wanted = [family for family in families if family.since and older_transformers(family.since)]
    return f"{wanted[0].model_type} needs transformers {wanted[0].since}" if wanted else None


def pytest_collection_finish():
    """Garbage collections leave out the libraries, whose millions of objects stay anyway; each of all took half a second."""
    gc.collect()
    gc.freeze()
