"""InternVL and SmolVLM: frames are images to the stock model, told apart by what our processor adds."""

import pytest
import torch
from helpers.cut_oracle import CutPrompts
from helpers.families.base import COLON, FRAME, amplify_experts
from helpers.models import (
    IMAGE_AND_VIDEO,
    PROMPTS,
    RAGGED,
    Image,
    Video,
    family_of,
    masked_inputs,
    prompt_inputs,
    stock_inputs,
    stock_model,
    wrapped,
)

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.video.tiles import frame_counts

# Few and short: all of them are quick.
pytestmark = pytest.mark.spread(1)
GREEDY = dict(max_new_tokens=4, do_sample=False)
TILES = ("internvl", "smolvlm")
WITH_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16)


def layout_of(model, inputs):
    return model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], inputs)


# A frame's words, and places of a prompt of 2 words, a video of 2 frames, 3 words.
WORDS = {
    # 2 words, (3 words, mark, 4 tokens, mark), line break, (the same)
    "internvl": ([2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 20], [0] * 6 + [1] * 5, [0, 1, 21, 22, 23]),
    # 2 words, 2 of the introduction, (3 words, 2 marks, 4 tokens, mark), line break, (the same)
    "smolvlm": ([4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18, 19, 24], [0] * 7 + [1] * 6, [0, 1, 2, 3, 25, 26, 27]),
}


@pytest.mark.parametrize("name", TILES)
def test_words_of_a_prompt_by_hand(name):
    _, model = wrapped(name)
    inputs = prompt_inputs(model.backbone, [[2, Video(2), 3]])
    layout = layout_of(model, inputs)
    (span,) = layout.videos
    words, frames, text = WORDS[name]
    assert (span.word_places.tolist(), span.word_frames.tolist()) == (words, frames)
    assert layout.text_places[0].tolist() == text
    # Of a single frame, the marks.
    (span,) = layout_of(model, prompt_inputs(model.backbone, [[2, Video(1), 3]])).videos
    marks = len(family_of(model.backbone).before)
    assert span.word_places.tolist() == [*range(span.positions[0] - marks, span.positions[0]), span.positions[-1] + 1]


@pytest.mark.parametrize("name", TILES)
def test_a_policy_that_reads_the_question_does_not_read_them(name):
    stock, model = wrapped(name, policy_attention="question")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    before = model.compress(**inputs, retention_ratio=0.25).videos[0]
    ids = inputs["input_ids"].clone()
    ids[torch.isin(ids, torch.tensor([FRAME, COLON]))] = 77
    after = model.compress(**{**inputs, "input_ids": ids}, retention_ratio=0.25).videos[0]
    assert torch.equal(after.token_scores, before.token_scores)
    ids[0, -1] = 77
    other = model.compress(**{**inputs, "input_ids": ids}, retention_ratio=0.25).videos[0]
    assert not torch.equal(other.token_scores, before.token_scores)


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("prompt", ["ragged batch", "adjacent videos", "image beside video"])
def test_they_go_with_an_empty_frame(name, prompt):
    """By hand, and by both oracles."""
    stock = stock_model(name)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, keep_frame_words=False)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    shorter = model.compress(**inputs, retention_ratio=0.1)
    kept = shorter.kept_indices
    gone = 0
    for video in shorter.videos:
        row = kept[video.row].tolist()
        for place, frame in zip(video.span.word_places.tolist(), video.span.word_frames.tolist(), strict=True):
            assert (place in row) == bool(video.keep[frame].any())
            gone += place not in row
    assert gone >= 15
    ours = model.generate(**inputs, retention_ratio=0.1, **GREEDY)
    assert torch.equal(ours[:, -4:], CutPrompts(stock, inputs, kept).greedy(4)[0])
    assert torch.equal(ours, stock.generate(**masked_inputs(stock, inputs, kept), **GREEDY))


@pytest.mark.parametrize("name", TILES)
def test_images_alone_are_the_stock_models(name):
    stock, model = wrapped(name)
    inputs = prompt_inputs(stock, [[2, Image(), 3, Image(), 4], [5]])
    expected = stock.generate(**stock_inputs(stock, inputs), **GREEDY)
    assert torch.equal(model.generate(**inputs, retention_ratio=0.25, **GREEDY), expected)
    assert model.family.image_lengths(stock, inputs) == [4] * 4  # tiles
    assert model.family.image_lengths(stock, stock_inputs(stock, inputs)) == [4] * 4


@pytest.mark.parametrize("name", TILES)
def test_inputs_that_do_not_say_what_is_a_frame(name):
    stock, model = wrapped(name)
    inputs = prompt_inputs(stock, IMAGE_AND_VIDEO)
    plain = stock_inputs(stock, inputs)
    assert torch.equal(model.generate(**plain, retention_ratio=1.0, **GREEDY), stock.generate(**plain, **GREEDY))
    for call in (lambda **how: model.generate(**plain, **how), lambda **how: model(**plain, **how)):
        with pytest.raises(ValueError, match="Frames cannot be told from images without mm_token_type_ids"):
            call(retention_ratio=0.25)
    numbers = inputs["frame_numbers"]
    one = (0,) if name == "smolvlm" else ()
    wrong = {
        "frame_numbers has 3 where the next frame": torch.where(numbers == 2, 3, numbers),
        "pixel_values has 6 tiles, frame_numbers 5": numbers[(*one, slice(0, 5))][None] if one else numbers[:5],
    }
    if name == "smolvlm":
        wrong.popitem()
    for message, frame_numbers in wrong.items():
        with pytest.raises(ValueError, match=message):
            model.generate(**{**inputs, "frame_numbers": frame_numbers}, retention_ratio=0.25, **GREEDY)
    with pytest.raises(ValueError, match="frame_numbers is given without pixel_values"):
        model.compress(**{n: v for n, v in inputs.items() if n != "pixel_values"}, retention_ratio=0.25)


def test_frames_are_counted():
    assert frame_counts(torch.tensor([[-1, 0, 1, 0, -2], [0, 1, 2, -1, 0]])) == [2, 1, 3, 1]
    for numbers in ([1], [0, 2], [0, -1, 1], [-3]):
        with pytest.raises(ValueError, match="where the next frame of a video or an image is due"):
            frame_counts(torch.tensor(numbers))


@pytest.mark.parametrize("rows", [RAGGED, IMAGE_AND_VIDEO], ids=["ragged", "image beside"])
@pytest.mark.parametrize("text", [dict(model_type="qwen3", head_dim=16), dict(model_type="qwen3_moe", **WITH_EXPERTS)])
def test_other_language_models_of_internvl(text, rows):
    """Qwen3 with and without experts, by both oracles."""
    stock = stock_model("internvl", **text)
    with torch.no_grad():
        amplify_experts(stock)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    assert type(model.get_decoder()).__name__ == {"qwen3": "Qwen3Model"}.get(text["model_type"], "Qwen3MoeModel")
    inputs = prompt_inputs(stock, rows)
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    ours = model.generate(**inputs, retention_ratio=0.25, **GREEDY)
    assert torch.equal(ours[:, -4:], CutPrompts(stock, inputs, kept).greedy(4)[0])
    assert torch.equal(ours, stock.generate(**masked_inputs(stock, inputs, kept), **GREEDY))
    whole = stock.generate(**stock_inputs(stock, inputs), **GREEDY)
    assert torch.equal(model.generate(**inputs, retention_ratio=1.0, **GREEDY), whole)
