"""Families that a supported transformers does not have as they are read here."""

import pytest
from transformers import Gemma4Config, Qwen2VLConfig

from cacovid_hf._compat import NEWEST_TRANSFORMERS, older_transformers
from cacovid_hf.backbones import BACKBONES, backbone_family


def test_an_older_transformers_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(BACKBONES["gemma4"], "since", "6.7", raising=False)
    with pytest.raises(ValueError, match=r"family 'gemma4' needs transformers 6\.7 or newer, and 5\..* is installed"):
        backbone_family(Gemma4Config())
    assert backbone_family(Qwen2VLConfig()) is BACKBONES["qwen2_vl"]


def test_every_family_runs_on_the_newest():
    assert not [
        family.model_type
        for family in BACKBONES.values()
        if family.since and older_transformers(family.since) and not older_transformers(NEWEST_TRANSFORMERS)
    ]
    assert not older_transformers("5.17")
