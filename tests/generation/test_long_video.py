"""Long videos: chunks against the whole, encoded videos in place of pixels, and memory that is bounded."""

import threading

import pytest
import torch
from helpers.chats import chat_inputs
from helpers.media import write_video
from helpers.models import (
    BY_NAME,
    FAMILIES,
    IMAGE_AND_VIDEO,
    PROMPTS,
    RAGGED,
    TWO_VIDEOS,
    Video,
    masked_inputs,
    prompt_inputs,
    stock_model,
    tower,
    wrapped,
)
from helpers.processors import tiny_processor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.backbones import base
from cacovid_hf.compressors import COMPRESSORS, Uniform
from cacovid_hf.generation.long_video import encode_file, prefetched
from cacovid_hf.prompt import EncodedVideos
from cacovid_hf.video.addresses import AddressRules, address_rules, current_rules

# Windows of Qwen2.5-VL's tower are 2 x 2 tokens here: grids of several windows, odd ones among them.
LONG = [[2, Video(5, 4, 3), 3, Video(5, 3, 5, 2.5), 5]]
STEP = dict(do_sample=False, max_new_tokens=5)


@pytest.mark.spread(6)
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 64, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_are_the_whole(family, frames):
    """The features of every video, and the prompt, are those of the stock forward."""
    stock, model = wrapped(family)
    for rows in (LONG, RAGGED, PROMPTS["adjacent videos"]):
        inputs = prompt_inputs(stock, rows)
        encoded = model.encode_videos(**inputs, frames_per_chunk=frames)
        layout = model.family.layout(stock.config, inputs["input_ids"], inputs["attention_mask"], inputs)
        others = {n: v for n, v in inputs.items() if n not in ("input_ids", "attention_mask")}
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.no_grad():
            whole = model.family.embed(stock, layout, ids, mask, others, frames_per_chunk=None)
            parts = model.family.embed(stock, layout, ids, mask, others, frames_per_chunk=frames)
        torch.testing.assert_close(parts.inputs_embeds, whole.inputs_embeds, atol=1e-5, rtol=1e-5)
        assert encoded.grids == tuple(span.grid for span in layout.videos)
        trailing = torch.arange(model.family.trailing_tokens) + 1
        embeds = whole.inputs_embeds
        wide = embeds if whole.extra is None else torch.cat([embeds, whole.extra], dim=-1)
        assert wide.shape[-1] == 64 + model.family.extra_width(stock.config)
        for span, features in zip(layout.videos, encoded.features, strict=True):
            places = torch.cat([span.positions, span.positions[-1] + trailing])
            torch.testing.assert_close(features, wide[span.row, places], atol=1e-5, rtol=1e-5)


@pytest.mark.spread(6)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_encoded_videos_in_place_of_pixels(family, prompt):
    """Selection, tokens and logits are those of the call with pixels; at ratio 1.0 those of the stock model."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    encoded = model.encode_videos(**inputs, frames_per_chunk=3)
    text = BY_NAME[family].without_videos(inputs)
    a = model.compress(**inputs, retention_ratio=0.25)
    b = model.compress(**text, encoded_videos=encoded, retention_ratio=0.25)
    assert torch.equal(a.kept_indices, b.kept_indices)
    torch.testing.assert_close(a.inputs_embeds, b.inputs_embeds, atol=1e-5, rtol=1e-5)
    assert torch.equal(a.position_ids, b.position_ids)
    with torch.no_grad():
        ours = model(**text, encoded_videos=encoded, retention_ratio=0.25).logits
        torch.testing.assert_close(ours, model(**inputs, retention_ratio=0.25).logits, atol=1e-3, rtol=1e-3)
    for ratio in (0.25, 1.0, None):
        ours = model.generate(**text, encoded_videos=encoded, retention_ratio=ratio, **STEP)
        assert torch.equal(ours, model.generate(**inputs, retention_ratio=ratio, **STEP))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_many_frames_are_encoded_in_chunks(family, monkeypatch):
    """No forward of the vision tower sees more frames than a chunk; at the default of 64 a short video goes the stock way."""
    stock, model = wrapped(family)
    seen = []

    def count(module, args, kwargs):
        seen.append(BY_NAME[family].frames_seen(args, kwargs))

    handle = tower(stock).register_forward_pre_hook(count, with_kwargs=True)
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    whole = model.compress(**inputs, retention_ratio=0.25)
    assert seen == [8]
    seen.clear()
    monkeypatch.setitem(base.Backbone.embed.__kwdefaults__, "frames_per_chunk", 3)
    parts = model.compress(**inputs, retention_ratio=0.25)
    assert seen == [3, 1, 3, 1]
    handle.remove()
    assert torch.equal(parts.kept_indices, whole.kept_indices)
    torch.testing.assert_close(parts.inputs_embeds, whole.inputs_embeds, atol=1e-5, rtol=1e-5)


READ_THE_TOWER = [
    name for name, method in COMPRESSORS.items() if isinstance(method.reads_tower, property) or method.reads_tower
]


@pytest.mark.parametrize("rows", [TWO_VIDEOS, IMAGE_AND_VIDEO], ids=["two videos", "image beside"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_and_encoded_videos_give_what_the_tower_attended_to(family, rows, monkeypatch):
    """Methods that read the tower keep the same tokens, whether it ran at once, in chunks, or before."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, rows)
    whole = {name: model.compress(**inputs, retention_ratio=0.3, compressor=name) for name in READ_THE_TOWER}
    assert len(whole) >= 6
    encoded = model.encode_videos(**inputs, frames_per_chunk=3, with_tower_attention=True)
    again = EncodedVideos.joined([encoded.take([number]) for number in range(len(encoded))])
    monkeypatch.setitem(base.Backbone.embed.__kwdefaults__, "frames_per_chunk", 3)
    for name, expected in whole.items():
        for call in (inputs, {**BY_NAME[family].without_videos(inputs), "encoded_videos": again}):
            found = model.compress(**call, retention_ratio=0.3, compressor=name)
            assert torch.equal(found.kept_indices, expected.kept_indices)
            torch.testing.assert_close(found.inputs_embeds, expected.inputs_embeds, atol=1e-5, rtol=1e-4)
    # What is held is as large as the tokens, not as the patches.
    assert encoded.tower[0].received().shape == (encoded.grids[0][0], encoded.grids[0][1] * encoded.grids[0][2])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoded_video_in_a_later_turn(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, [[3, Video(), 6]])
    encoded = model.encode_videos(**inputs)
    first = model.generate(
        **BY_NAME[family].without_videos(inputs),
        encoded_videos=encoded,
        retention_ratio=0.25,
        return_dict_in_generate=True,
        **STEP,
    )
    new = prompt_inputs(stock, [[2, Video(4, 3, 2, 2.5), 5]], seed=3)
    ids = torch.cat([first.sequences, new["input_ids"]], dim=1)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 5))
        whole["mm_token_type_ids"] = torch.cat([types, new["mm_token_type_ids"]], dim=1)
    how = dict(retention_ratio=0.25, compressor=Uniform())
    second = model.generate(
        **whole, encoded_videos=model.encode_videos(**new), past_key_values=first.past_key_values, **how, **STEP
    )
    start = first.sequences.shape[1]
    kept = torch.cat(
        [
            model.compress(**inputs, retention_ratio=0.25).kept_indices,
            torch.arange(start - 5, start)[None],
            model.compress(**new, **how).kept_indices + start,
        ],
        dim=1,
    )
    pixels = BY_NAME[family].stacked([{n: v for n, v in one.items() if n not in whole} for one in (inputs, new)])
    assert torch.equal(second, stock.generate(**masked_inputs(stock, {**whole, **pixels}, kept), **STEP))


def test_features_may_wait_elsewhere():
    stock, model = wrapped("llava_onevision")
    encoded = model.encode_videos(**prompt_inputs(stock, RAGGED), device="meta")
    assert [features.device.type for features in encoded.features] == ["meta"] * 3
    assert len(encoded.take([2, 0])) == 2


@pytest.mark.parametrize("frames", [0, -1, 1.5, True])
def test_chunk_size_is_checked(frames):
    stock, model = wrapped("llava_onevision")
    with pytest.raises(ValueError, match="frames_per_chunk="):
        model.encode_videos(**prompt_inputs(stock, RAGGED), frames_per_chunk=frames)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_encoded_videos(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    encoded = model.encode_videos(**inputs)
    with pytest.raises(ValueError, match=r"given twice, as encoded_videos and as (pixel_values_videos|frame_numbers)"):
        model.generate(**inputs, encoded_videos=encoded, retention_ratio=0.25)
    with pytest.raises(ValueError, match="no videos to encode"):
        model.encode_videos(**BY_NAME[family].without_videos(inputs))
    reads_tower = next(name for name, method in COMPRESSORS.items() if method.reads_tower)
    with pytest.raises(ValueError, match="not known of these encoded videos"):
        model.generate(
            **BY_NAME[family].without_videos(inputs),
            encoded_videos=encoded,
            retention_ratio=0.25,
            compressor=reads_tower,
        )
    two = prompt_inputs(stock, TWO_VIDEOS)
    with pytest.raises(ValueError, match=r"video placeholders, the pixel inputs of 1 video\(s\)"):
        model.generate(**BY_NAME[family].without_videos(two), encoded_videos=encoded, retention_ratio=0.25)
    other = CaCoVidForConditionalGeneration.from_backbone(stock_model(family, hidden_size=128, num_attention_heads=8))
    width = encoded.features[0].shape[-1]
    wide = 128 + model.family.extra_width(other.backbone.config)
    with pytest.raises(ValueError, match=f"encoded with hidden size {width}, the model has {wide}"):
        other.generate(**BY_NAME[family].without_videos(inputs), encoded_videos=encoded, retention_ratio=0.25)


# ------------------------------------------------------------------ files


@pytest.fixture(params=FAMILIES)
def filmed(request, tmp_path):
    _, model = wrapped(request.param)
    processor = with_video_reader(tiny_processor(request.param))
    path = write_video(tmp_path / "clip.mp4", 23, fps=5)
    return model, processor, path


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("num_frames", "frames"), [(23, 2), (7, 3), (9, 64), (1, 1)])
def test_a_file_in_chunks_is_the_file_at_once(filmed, num_frames, frames, overlap):
    """Odd numbers of frames and last chunks included: what processor and tower make of the whole video."""
    model, processor, path = filmed
    inputs = chat_inputs(processor, "what color", path, num_frames=num_frames, max_fps=100.0)
    processor.video_processor.max_fps = 100.0
    expected = model.encode_videos(**inputs, frames_per_chunk=None, with_tower_attention=True)
    encoded = encode_file(
        model,
        processor.video_processor,
        path,
        num_frames=num_frames,
        frames_per_chunk=frames,
        overlap=overlap,
        device="cpu",
        with_tower_attention=True,
    )
    for name in ("received", "of_mean_query", "mean_keys"):
        ours, theirs = (getattr(each.tower[0], name)() for each in (encoded, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert encoded.grids == expected.grids
    torch.testing.assert_close(encoded.features[0], expected.features[0], atol=1e-4, rtol=1e-4)
    assert encoded.inputs.keys() == expected.inputs.keys()
    for name, value in expected.inputs.items():
        torch.testing.assert_close(encoded.inputs[name], torch.as_tensor(value), check_dtype=False)


def test_errors_of_the_reading_thread_arrive(filmed, tmp_path):
    model, processor, path = filmed
    before = threading.active_count()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        encode_file(model, processor.video_processor, tmp_path / "none.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        encode_file(model, processor.video_processor, cut)
    assert threading.active_count() == before


def test_ahead_keeps_order_depth_and_ends():
    made = []

    def items():
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            made.append("closed")

    before = threading.active_count()
    iterator = prefetched(items(), depth=2)
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    iterator.close()
    assert threading.active_count() == before
    assert made[-1] == "closed"
    assert len(made) <= 3 + 2 + 2
    assert list(prefetched(range(50))) == list(range(50))


def test_rules_for_addresses_hold_in_the_thread_that_decodes():
    rules = AddressRules(folders=())
    with address_rules(rules):
        assert list(prefetched(current_rules() for _ in range(2))) == [rules] * 2


def test_frames_whose_size_depends_on_their_number_are_refused(tmp_path):
    _, model = wrapped("qwen2_5_vl")
    processor = with_video_reader(tiny_processor("qwen2_5_vl"))
    processor.video_processor.cap_pixels_per_frame = True
    with pytest.raises(ValueError, match="cap_pixels_per_frame=True"):
        encode_file(model, processor.video_processor, write_video(tmp_path / "clip.mp4", 8))
