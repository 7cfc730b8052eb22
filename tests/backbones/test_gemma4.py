"""Gemma 4: times of the first frame, a cut of a video's rows, what is missing or not served, and a view of the model whose `generate` takes embeddings."""

import pytest
import torch
from helpers.models import PROMPTS, TWO_VIDEOS, prompt_inputs, stock_model, tower, wrapped
from transformers import AutoConfig, AutoModelForImageTextToText

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf._compat import older_transformers
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.backbones.loaded import taking_embeddings

pytestmark = pytest.mark.skipif(
    bool(older_transformers(BACKBONES["gemma4"].since)), reason="needs a newer transformers"
)


def refused_before_vision(model, inputs, message):
    def heavy(*args):
        pytest.fail("the vision tower ran before the input was checked")

    handle = tower(model.backbone).register_forward_pre_hook(heavy)
    for call in (model.generate, model, model.compress):
        with pytest.raises(ValueError, match=message):
            call(**inputs, retention_ratio=0.25)
    handle.remove()


@pytest.mark.parametrize("name", ["num_frames_per_video", "video_position_ids", "mm_token_type_ids"])
def test_what_the_processor_returned_is_missing(name):
    stock, model = wrapped("gemma4")
    inputs = {key: value for key, value in prompt_inputs(stock, PROMPTS["one video"]).items() if key != name}
    refused_before_vision(model, inputs, f"{name} is missing")


def test_frames_of_several_sizes():
    stock, model = wrapped("gemma4")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    inputs["video_position_ids"] = inputs["video_position_ids"].clone()
    inputs["video_position_ids"][1, 27:54] = -1
    refused_before_vision(model, inputs, "give each video frames of one size")


def test_words_of_every_frame():
    """Three words and a mark before a frame but the first, which has no space in front of its time."""
    stock, model = wrapped("gemma4")
    inputs = prompt_inputs(stock, PROMPTS["image beside video"])
    layout = model.family.layout(stock.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    (span,) = layout.videos
    counts = [int((span.word_frames == frame).sum()) for frame in range(4)]
    assert counts == [2 + 1 + 1, *[3 + 1 + 1] * 3]
    first = int(span.positions[0])
    assert span.word_places[:3].tolist() == [first - 3, first - 2, first - 1]


def test_a_part_of_a_video_and_one_of_two():
    stock, model = wrapped("gemma4")
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    part = model.family.frames(inputs, 1, 1, 3)
    assert torch.equal(part["pixel_values_videos"], inputs["pixel_values_videos"][5:7])
    assert model.family.video_grids(stock.config, part) == [(2, 3, 2)]
    taken = model.family.take(inputs, [1], None)
    assert torch.equal(taken["video_position_ids"], inputs["video_position_ids"][4:])
    assert model.family.video_grids(stock.config, taken) == [(4, 3, 2)]


def test_a_view_shares_all_state():
    stock = stock_model("gemma4")
    view = taking_embeddings(stock)
    assert view is not stock
    assert isinstance(view, type(stock))
    assert view.__dict__ is stock.__dict__
    assert taking_embeddings(view) is view
    other = stock_model("qwen2_vl")
    assert taking_embeddings(other) is other


def test_gemma4_unified_is_refused_by_name(tmp_path):
    """When it is wrapped, when it is named as a backbone, and as a checkpoint's backbone."""
    config = AutoConfig.for_model("gemma4_unified")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    message = "Backbone family 'gemma4_unified' is not supported: use one of .*gemma4"
    with pytest.raises(ValueError, match=message):
        CaCoVidForConditionalGeneration.from_backbone(model)
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("gemma4"), policy_type="light")
    model.save_pretrained(tmp_path, include_backbone=True, card=False)
    stored = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(stored.replace('"model_type": "gemma4"', '"model_type": "gemma4_unified"'))
    with pytest.raises(ValueError, match=message):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path)
