"""Timing a call changes nothing about it, whatever the method does."""

import pytest
import torch
from helpers.models import FAMILIES, RAGGED, prompt_inputs, refused_methods, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import COMPRESSORS
from cacovid_hf.generation.timing import Stages, timed_generate


@pytest.mark.parametrize("family", FAMILIES)
def test_timed_is_plain(family):
    """Every registered method, those among them that act inside the language model."""
    stock = stock_model(family)
    model, inputs = CaCoVidForConditionalGeneration.from_backbone(stock), prompt_inputs(stock, RAGGED)
    for name, kind in COMPRESSORS.items():
        if name in refused_methods(family):
            continue
        method, stages = model.resolve_compressor(name), Stages(torch.device("cpu"))
        how = dict(retention_ratio=0.7, max_new_tokens=6)
        plain = model.generate(**inputs, **how, compressor=method, do_sample=False)
        ids, selections = timed_generate(model, inputs, method, stages, **how)
        assert torch.equal(ids, plain), name
        assert len(selections) == 3
        assert (stages.layers is not None) == kind.inside_llm, name
        if stages.layers is not None:
            first, *_, last = stages.layers.layer_tokens
            assert len(stages.layers.layer_tokens) == 3
            assert sum(last) < sum(first), name
        assert stages.times["prefill"] > 0
        assert stages.times["policy"] > 0
