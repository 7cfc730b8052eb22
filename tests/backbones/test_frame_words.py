"""The words around a video's frames (times, marks): they are not the question, and go with a frame of which nothing is kept, if asked."""

import pytest
import torch
from helpers.cut_oracle import CutPrompts
from helpers.families.base import COLON, COMMA, IMAGE, TIME, VIDEO, VIDEO_END, VIDEO_START, VISION_END, VISION_START
from helpers.models import (
    ADJACENT_VIDEOS,
    BY_NAME,
    FAMILIES,
    PROMPTS,
    RAGGED,
    Image,
    Video,
    masked_inputs,
    prompt_inputs,
    stock_inputs,
    stock_model,
    wrapped,
)

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.compressors import FastV
from cacovid_hf.ratio import token_budget

WORDED = [family for family in FAMILIES if BACKBONES[family].words_around_frames]
GREEDY = dict(max_new_tokens=4, do_sample=False)


def layout_of(model, inputs):
    return model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], inputs)


def test_words_of_a_prompt_by_hand():
    """`2 words, <vs>, (3 words, <vs>, 6 tokens, <ve>) twice, <ve>, 3 words`: five words a frame, the outer marks are text."""
    _, model = wrapped("qwen3_vl")
    inputs = prompt_inputs(model.backbone, [[2, Video(2), 3]])
    ids = inputs["input_ids"][0].tolist()
    assert [ids[2], ids[6], ids[13], ids[17], ids[24], ids[25]] == [VISION_START] * 2 + [VISION_END, VISION_START] + [
        VISION_END
    ] * 2
    layout = layout_of(model, inputs)
    (span,) = layout.videos
    assert span.positions.tolist() == [*range(7, 13), *range(18, 24)]
    assert span.word_places.tolist() == [3, 4, 5, 6, 13, 14, 15, 16, 17, 24]
    assert span.word_frames.tolist() == [0] * 5 + [1] * 5
    assert layout.text_places[0].tolist() == [0, 1, 2, 25, 26, 27, 28]


def test_times_without_marks_by_hand():
    """VideoLLaMA3: `2 words, time, 2 words, colon, 6 tokens`, then `comma, time, 2 words, colon, 6 tokens`; what a first time begins with is seen in the second."""
    _, model = wrapped("video_llama_3")
    inputs = prompt_inputs(model.backbone, [[2, Video(2), 3]])
    ids = inputs["input_ids"][0].tolist()
    assert [ids[2], ids[5], ids[12], ids[13], ids[16]] == [TIME, COLON, COMMA, TIME, COLON]
    layout = layout_of(model, inputs)
    (span,) = layout.videos
    assert span.positions.tolist() == [*range(6, 12), *range(17, 23)]
    assert span.word_places.tolist() == [2, 3, 4, 5, 12, 13, 14, 15, 16]
    assert span.word_frames.tolist() == [0] * 4 + [1] * 5
    assert layout.text_places[0].tolist() == [0, 1, 23, 24, 25]
    # A later time may be longer by a digit.
    inputs["input_ids"][0, :17] = torch.tensor(
        [9, TIME, 8, COLON, *[VIDEO] * 6, COMMA, TIME, 8, 8, COLON, VIDEO, VIDEO]
    )
    inputs["input_ids"][0, 17:] = torch.tensor([*[VIDEO] * 4, 9, 9, 9, 9, 9])
    (span,) = layout_of(model, inputs).videos
    assert span.word_places.tolist() == [1, 2, 3, *range(10, 15)]
    # Of one frame nothing shows it, and the time counts as text; so does a word that is only spelled alike.
    (span,) = layout_of(model, prompt_inputs(model.backbone, [[2, Video(1), 3]])).videos
    assert span.word_places.tolist() == []
    inputs["input_ids"][0, :4] = torch.tensor([9, TIME, 8, 9])
    (span,) = layout_of(model, inputs).videos
    assert span.word_places.tolist() == [*range(10, 15)]


def test_times_behind_frames_by_hand():
    """GLM-4V: `2 words, video mark, (mark, 6 tokens, mark, 2 words) twice, video mark, 3 words`; the placeholders are those of images."""
    _, model = wrapped("glm4v")
    inputs = prompt_inputs(model.backbone, [[2, Video(2), 1, Image(), 3]])
    ids = inputs["input_ids"][0].tolist()
    assert [ids[2], ids[3], ids[10], ids[13], ids[20], ids[23]] == [
        VIDEO_START,
        VISION_START,
        VISION_END,
        VISION_START,
        VISION_END,
        VIDEO_END,
    ]
    assert set(ids[4:10] + ids[14:20] + ids[26:30]) == {IMAGE}
    layout = layout_of(model, inputs)
    (span,) = layout.videos
    assert span.positions.tolist() == [*range(4, 10), *range(14, 20)]
    assert span.word_places.tolist() == [3, 10, 11, 12, 13, 20, 21, 22]
    assert span.word_frames.tolist() == [0] * 4 + [1] * 4
    assert layout.text_places[0].tolist() == [0, 1, 2, 23, 24, 25, 30, 31, 32, 33]
    is_video, is_image = model.family.places(model.backbone.config, inputs["input_ids"], {})
    assert is_image[0].nonzero()[:, 0].tolist() == [*range(26, 30)]
    assert is_video[0].nonzero()[:, 0].tolist() == span.positions.tolist()


@pytest.mark.parametrize("rows", [RAGGED, ADJACENT_VIDEOS], ids=["ragged", "adjacent"])
def test_every_frame_has_its_own(rows):
    _, model = wrapped("qwen3_vl")
    inputs = prompt_inputs(model.backbone, rows, padding_side="right")
    for span in layout_of(model, inputs).videos:
        for frame, places in enumerate(span.positions.view(span.num_frames, -1)):
            own = span.word_places[span.word_frames == frame]
            assert own.tolist() == [*range(places[0] - 4, places[0]), places[-1] + 1]


@pytest.mark.spread(3)
@pytest.mark.parametrize("family", WORDED)
def test_a_policy_that_reads_the_question_does_not_read_them(family):
    stock, model = wrapped(family, policy_attention="question")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    (span,) = layout_of(model, inputs).videos
    before = model.compress(**inputs, retention_ratio=0.25).videos[0]
    ids = inputs["input_ids"].clone()
    is_time = torch.isin(
        ids[0, span.word_places], torch.tensor([VISION_START, VISION_END, COMMA, TIME, COLON]), invert=True
    )
    ids[0, span.word_places[is_time]] = 77
    after = model.compress(**{**inputs, "input_ids": ids}, retention_ratio=0.25).videos[0]
    assert torch.equal(after.token_scores, before.token_scores)
    ids[0, -1] = 77
    other = model.compress(**{**inputs, "input_ids": ids}, retention_ratio=0.25).videos[0]
    assert not torch.equal(other.token_scores, before.token_scores)


@pytest.mark.spread(3)
@pytest.mark.parametrize("family", WORDED)
@pytest.mark.parametrize("rows", [RAGGED, ADJACENT_VIDEOS], ids=["ragged", "adjacent"])
def test_they_go_with_an_empty_frame(family, rows):
    """By hand, and by both oracles; what is left stays at its original position."""
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, keep_frame_words=False)
    inputs = prompt_inputs(stock, rows)
    shorter = model.compress(**inputs, retention_ratio=0.1)
    kept = shorter.kept_indices
    gone = 0
    for video in shorter.videos:
        span, row = video.span, kept[video.row].tolist()
        assert sum(place in row for place in span.positions.tolist()) == int(video.keep.sum())
        assert int(video.keep.sum()) == token_budget(span.num_tokens, 0.1)
        for place, frame in zip(span.word_places.tolist(), span.word_frames.tolist(), strict=True):
            assert (place in row) == bool(video.keep[frame].any())
            gone += place not in row
    assert gone >= 2 * 2 * len(shorter.videos)  # of two frames at least, two words or more each
    everything = CaCoVidForConditionalGeneration.from_backbone(stock, policy=model.policy)
    assert everything.compress(**inputs, retention_ratio=0.1).kept_indices.shape[1] > kept.shape[1]
    ours = model.generate(**inputs, retention_ratio=0.1, **GREEDY)
    cut = CutPrompts(stock, inputs, kept)
    assert torch.equal(ours[:, -4:], cut.greedy(4)[0])
    if BY_NAME[family].attends:
        assert torch.equal(ours, stock.generate(**masked_inputs(stock, inputs, kept), **GREEDY))
    whole = model.generate(**inputs, retention_ratio=1.0, **GREEDY)
    assert torch.equal(whole, stock.generate(**stock_inputs(stock, inputs), **GREEDY))


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", [family for family in WORDED if BY_NAME[family].cuts_inside])
def test_they_stay_where_a_frame_is_emptied_inside_the_language_model(family):
    """Words have entered it, and no method drops words there."""
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, keep_frame_words=False)
    inputs = prompt_inputs(stock, RAGGED)
    method = FastV(layer=1, ratio_of="kept")
    spans = [video.span for video in model.compress(**inputs, retention_ratio=0.1, compressor=method).videos]
    places = model(**inputs, retention_ratio=0.1, compressor=method).kept_indices
    emptied = 0
    for span in spans:
        left = set(places[span.row].tolist())
        assert set(span.word_places.tolist()) <= left
        emptied += sum(not left & set(frame.tolist()) for frame in span.positions.view(span.num_frames, -1))
    assert emptied >= 3


def test_the_last_token_stays():
    """The answer is read there, whatever it is."""
    _, model = wrapped("qwen3_vl", keep_frame_words=False)
    inputs = prompt_inputs(model.backbone, [[2, Video(4)]])
    inputs = {n: v[:, :-1] if v.shape[:1] == (1,) and n != "video_grid_thw" else v for n, v in inputs.items()}
    assert inputs["input_ids"][0, -2:].tolist() == [VIDEO, VISION_END]
    kept = model.compress(**inputs, retention_ratio=0.05).kept_indices
    assert int(kept[0, -1]) == inputs["input_ids"].shape[1] - 1


def test_a_family_without_words_is_as_before():
    stock, model = wrapped("qwen2_5_vl")
    other = CaCoVidForConditionalGeneration.from_backbone(stock, policy=model.policy, keep_frame_words=False)
    inputs = prompt_inputs(stock, RAGGED)
    a, b = (each.compress(**inputs, retention_ratio=0.1).kept_indices for each in (model, other))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="keep_frame_words='no' is unknown: choose true or false"):
        CaCoVidConfig(keep_frame_words="no")
