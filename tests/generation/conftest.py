"""Fixtures of the tests of streams."""

import pytest
from helpers.models import FIRST, stock_model
from helpers.processors import tiny_processor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader


@pytest.fixture(params=FIRST)
def streaming(request):
    """A wrapped model of each of the first two families, and its processor."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(request.param))
    return model, with_video_reader(tiny_processor(request.param))
