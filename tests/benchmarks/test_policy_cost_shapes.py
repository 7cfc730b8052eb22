"""The benchmark of what policies cost measures the kind of language model of every family, and names no family that is not there."""

from pathlib import Path

import pytest
from helpers.families.base import TEXT
from helpers.models import BY_NAME

from cacovid_hf.backbones import BACKBONES


@pytest.fixture
def shapes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    from policy_cost import SHAPES

    return SHAPES.values()


@pytest.mark.parametrize("family", BACKBONES)
def test_every_familys_kind_of_language_model_is_measured(family, shapes):
    """By its type; a family that is named may have another type with the same layers."""
    kind = BY_NAME[family].config(TEXT).get_text_config().model_type
    assert any(family in shape.families or kind == shape.text["model_type"] for shape in shapes), (
        f"The language model of {family} is of type {kind!r}, which benchmarks/policy_cost.py does not measure: add a published one to its SHAPES."
    )


def test_every_family_it_names_is_there(shapes):
    assert {family for shape in shapes for family in shape.families} <= set(BACKBONES)
