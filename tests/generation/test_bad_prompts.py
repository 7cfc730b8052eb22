"""Inputs of a call that do not fit: one clear error, before anything is computed."""

import pytest
import torch
from helpers.models import (
    FAMILIES,
    IMAGE_AND_VIDEO,
    PROMPTS,
    TEXT_ONLY,
    TWO_VIDEOS,
    family_of,
    prompt_inputs,
    stock_model,
    tower,
)
from transformers import AutoModelForImageTextToText, Qwen2Config, Qwen2ForCausalLM

from cacovid_hf import CaCoVidForConditionalGeneration


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


def pixels_without_placeholders(stock):
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    text = prompt_inputs(stock, TEXT_ONLY[:1])
    return {**text, **{name: inputs[name] for name in inputs if name not in text}}


def placeholders_without_pixels(stock):
    return family_of(stock).without_videos(prompt_inputs(stock, PROMPTS["one video"]))


def one_video_too_few(stock):
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    one = prompt_inputs(stock, PROMPTS["one video"])
    words = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {**inputs, **{name: one[name] for name in one if name not in words}}


def masked_placeholders(stock):
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    inputs["attention_mask"][0, (inputs["input_ids"][0] == family_of(stock).frame_id).nonzero()[3]] = 0
    return inputs


def video_across_rows(stock):
    inputs = prompt_inputs(stock, [[2, *PROMPTS["one video"][0]], [30]])
    ids, frame, marks = inputs["input_ids"], family_of(stock).frame_id, family_of(stock).marks
    first = (ids[0] == frame).nonzero()[0]
    ids[0, first] = 9
    ids[1, -21:-18] = torch.tensor([marks.get("<|begin_of_video|>", 9), frame, marks.get("<|end_of_video|>", 9)])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"][0, first] = 0
        inputs["mm_token_type_ids"][1, -20] = 2
    return inputs


def ends_inside_the_video(stock):
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    last = (inputs["input_ids"][0] == family_of(stock).frame_id).nonzero()[-1] + 1
    return {
        name: value[:, :last] if value.shape[:2] == inputs["input_ids"].shape else value
        for name, value in inputs.items()
    }


def ids_as(stock, change):
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    return {**inputs, "input_ids": change(inputs["input_ids"])}


CASES = {
    "ratio 0": (None, dict(retention_ratio=0), r"retention_ratio=0\.0 is outside \(0, 1\]"),
    "ratio 1.1": (None, dict(retention_ratio=1.1), r"retention_ratio=1\.1 is outside"),
    "ratio NaN": (None, dict(retention_ratio=float("nan")), "retention_ratio=nan is outside"),
    "ratio a word": (None, dict(retention_ratio="most"), "retention_ratio='most' is not a number"),
    "too many ratios": (None, dict(retention_ratio=[0.5, 0.5]), r"retention_ratio has 2 values and the prompt 1 video"),
    "no ratios": (None, dict(retention_ratio=[]), r"retention_ratio has 0 values and the prompt 1 video"),
    "a bad ratio of several": (None, dict(retention_ratio=[2.0]), r"retention_ratio(\[0\])?=2\.0 is outside"),
    "unknown method": (
        None,
        dict(compressor="magic"),
        "compressor='magic' is unknown: did you mean marc?",
    ),
    "pixels without placeholders": (
        pixels_without_placeholders,
        {},
        r"0 video placeholders, the pixel inputs of 1 video\(s\) stand for",
    ),
    "placeholders without pixels": (
        placeholders_without_pixels,
        {},
        r"video placeholders, the pixel inputs of 0 video\(s\) stand for 0",
    ),
    "one video too few": (one_video_too_few, {}, "one video input for every video in the messages"),
    "masked placeholders": (masked_placeholders, {}, "attention_mask is 0 at video placeholders"),
    "video across rows": (video_across_rows, {}, "a video must lie in one row"),
    "float ids": (
        lambda stock: ids_as(stock, torch.Tensor.float),
        {},
        r"input_ids are \(1, \d+\) of torch.float32: give a tensor of whole numbers",
    ),
    "ids of one row": (lambda stock: ids_as(stock, lambda ids: ids[0]), {}, r"input_ids are \(\d+,\) of torch.int64"),
    "no ids": (
        lambda stock: without(prompt_inputs(stock, PROMPTS["one video"]), "input_ids"),
        {},
        "input_ids are missing",
    ),
}


@pytest.mark.spread(7)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bad_call(family, case):
    make, arguments, message = CASES[case]
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = make(stock) if make else prompt_inputs(stock, PROMPTS["one video"])
    arguments = {"retention_ratio": 0.25, **arguments}

    def heavy(*args):
        pytest.fail("the vision tower ran before the input was checked")

    tower(stock).register_forward_pre_hook(heavy)
    calls = [lambda: model.generate(**inputs, **arguments, max_new_tokens=2), lambda: model(**inputs, **arguments)]
    if "input_ids" in inputs:
        calls.append(lambda: model.compress(**inputs, **arguments))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("ratios", [[1.0, 1.0], [0.3, 0.3, 0.3]])
def test_a_list_of_the_wrong_length_where_nothing_is_dropped(ratios):
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    for rows, videos in ((PROMPTS["one video"], 1), (TEXT_ONLY, 0)):
        with pytest.raises(ValueError, match=rf"has {len(ratios)} values and the prompt {videos} video"):
            model.generate(**prompt_inputs(stock, rows), retention_ratio=ratios, max_new_tokens=2)


def test_mistyped_names():
    stock = stock_model("llava_onevision")
    with pytest.raises(ValueError, match="retention_ration is not a setting of a CaCoVid model"):
        CaCoVidForConditionalGeneration.from_backbone(stock, retention_ration=0.25)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with pytest.raises(ValueError, match="retention_rato is not an input of LlavaOnevisionForConditionalGeneration"):
        model.compress(**prompt_inputs(stock, PROMPTS["one video"]), retention_rato=0.25)


def test_qwen_prompt_that_ends_inside_the_video():
    stock = stock_model("qwen2_5_vl")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with pytest.raises(ValueError, match="ends inside a video"):
        model.generate(**ends_inside_the_video(stock), retention_ratio=0.25, max_new_tokens=2)


def test_qwen_grid_without_pixels():
    stock = stock_model("qwen2_5_vl")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    for name, other in (("pixel_values_videos", "video_grid_thw"), ("video_grid_thw", "pixel_values_videos")):
        with pytest.raises(ValueError, match=f"{other} is given without {name}"):
            model.generate(**without(inputs, name), retention_ratio=0.25, max_new_tokens=2)


def test_llava_frames_without_a_video_axis():
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][0]
    with pytest.raises(ValueError, match=r"takes \(videos, frames, channels, height, width\)"):
        model.generate(**inputs, retention_ratio=0.25, max_new_tokens=2)


def test_scores_that_are_not_numbers():
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with torch.no_grad():
        model.policy.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="scores hold NaN"):
        model.generate(**prompt_inputs(stock, IMAGE_AND_VIDEO), retention_ratio=0.25, max_new_tokens=2)


def test_unknown_family(tmp_path):
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=20,
    )
    text_model = Qwen2ForCausalLM(config)
    with pytest.raises(ValueError, match="family 'qwen2' is not supported: use one of llava_onevision, qwen2_5_vl"):
        CaCoVidForConditionalGeneration.from_backbone(text_model)
    text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"AutoModelForImageTextToText|not supported"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "text")
