"""Random models deep enough to be cut between their layers, and the two methods that cut."""

import pytest
from helpers.models import BY_NAME, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import FastV, FrameFusion

LAYERS = 5
GREEDY = dict(max_new_tokens=4, do_sample=False)
BOTH = {"fastv": FastV(layer=2, ratio_of="kept"), "framefusion": FrameFusion(0.1)}


def wrapped(family, attention="sdpa", **text):
    if not BY_NAME[family].cuts_inside:
        pytest.skip(f"{family} is refused by methods that drop tokens between layers")
    stock = stock_model(family, attention, **{"num_hidden_layers": LAYERS, **text})
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock)


def number_of_hooks(stock):
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks)
        for name, module in stock.named_modules()
        if "language_model" in name
    )
