"""GLM-4V: images beside videos, which its stock code takes one kind at a time, and what shares their placeholder."""

import pytest
import torch
from helpers import flash_stand_in
from helpers.families.base import VISION_END
from helpers.models import IMAGE_AND_VIDEO, PROMPTS, prompt_inputs, stock_inputs, stock_model, wrapped

from cacovid_hf import CaCoVidForConditionalGeneration

GREEDY = dict(max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("decoding", [{}, dict(num_beams=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("ratio", [None, 1.0])
def test_an_image_beside_a_video_with_every_token(ratio, decoding):
    """The stock model refuses the pixels of both; of both embedded apart it says what ours does."""
    stock, model = wrapped("glm4v")
    inputs = prompt_inputs(stock, IMAGE_AND_VIDEO)
    with pytest.raises(ValueError, match="do not match"):
        stock.generate(**inputs, **GREEDY)
    reference = stock_inputs(stock, inputs)
    assert "inputs_embeds" in reference
    ours = model.generate(**inputs, retention_ratio=ratio, **GREEDY, **decoding)
    assert torch.equal(ours, stock.generate(**reference, **GREEDY, **decoding))


def test_a_video_is_not_taken_for_images_where_a_prompt_changes_within_it():
    """The mark in front of a video tells whose its placeholders are, also in what is left of it behind the cache."""
    stock, model = wrapped("glm4v")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    session = model.session(**inputs, retention_ratio=0.25, keep_selection=True)
    session.generate(**inputs, **GREEDY)
    ids = inputs["input_ids"].clone()
    time = int((ids[0] == VISION_END).nonzero()[0]) + 1
    ids[0, time] += 1
    other = {**inputs, "input_ids": ids}
    expected = model.generate(**other, retention_ratio=0.25, compressor=session._kept, **GREEDY)
    assert torch.equal(session.generate(**other, **GREEDY), expected)


def test_one_prompt_on_flash_attention(monkeypatch):
    """Stock code of GLM-4.5V takes it for packed sequences; that of the others does not, and two prompts are none."""
    flash_stand_in.install(monkeypatch)
    stock = stock_model("glm4v_moe")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    one, two = (prompt_inputs(stock, [PROMPTS["one video"][0]] * rows) for rows in (1, 2))
    expected = model.generate(**two, retention_ratio=0.25, **GREEDY)
    flash_stand_in.use_flash_attention(stock)
    with pytest.raises(ValueError, match="takes a single prompt on flash attention for packed sequences"):
        model.generate(**one, retention_ratio=0.25, **GREEDY)
    assert torch.equal(model.generate(**two, retention_ratio=0.25, **GREEDY), expected)
