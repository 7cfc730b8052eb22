"""Rotary embeddings whose frequencies depend on a prompt's length: exact within the bound, refused beyond it."""

import pytest
import torch
from helpers.models import ONE_VIDEO, prompt_inputs, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration


def models(bound):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    stock = stock_model("llava_onevision", rope_parameters=rope, max_position_embeddings=bound)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock)


def test_within_the_bound_chunks_and_beams_are_as_one_prefill():
    stock, model = models(256)
    inputs = prompt_inputs(stock, ONE_VIDEO)
    settings = dict(retention_ratio=0.25, max_new_tokens=4, do_sample=False)
    whole = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, prefill_chunk_size=4), whole)


def test_beyond_it_the_length_is_told():
    stock, model = models(16)
    inputs = prompt_inputs(stock, ONE_VIDEO)
    message = (
        r"rope_type 'dynamic'\) beyond 16 positions, and the uncompressed prompt and its answer have \d+\. Sample fewer"
    )
    for call in (model.generate, model.compress, model):
        with pytest.raises(ValueError, match=message):
            call(**inputs, retention_ratio=0.25)
    with torch.no_grad():
        assert torch.equal(model(**inputs, retention_ratio=1.0).logits, models(16)[0](**inputs).logits)
