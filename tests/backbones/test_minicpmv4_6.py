"""MiniCPM-V 4.6: what only its inputs can say, and its two numbers of tokens."""

import numpy as np
import pytest
import torch
from helpers.chats import CHAT, user
from helpers.media import write_video
from helpers.models import TWO_VIDEOS, family_of, prompt_inputs, stock_model, wrapped
from helpers.processors import tiny_processor
from transformers.video_utils import VideoMetadata

from cacovid_hf import with_video_reader
from cacovid_hf._compat import older_transformers
from cacovid_hf.backbones import BACKBONES

pytestmark = pytest.mark.skipif(
    bool(older_transformers(BACKBONES["minicpmv4_6"].since)), reason="needs a newer transformers"
)
STEP = dict(do_sample=False, max_new_tokens=3)


def decoded(frames, height=112, width=224):
    return np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def test_which_frames_are_of_one_video():
    """Two videos of one size with the same frames in all, in one prompt: where the first one ends is known by our argument alone."""
    processor = with_video_reader(tiny_processor("minicpmv4_6"))
    stock, model = wrapped("minicpmv4_6")
    text, grids = "<video> what <video> color", []
    for counts in ((2, 4), (4, 2)):
        videos = [decoded(count) for count in counts]
        inputs = processor(text=[text], videos=videos, do_sample_frames=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        grids.append(inputs.pop("video_grid_thw"))
        compressed = model.compress(**inputs, video_grid_thw=grids[-1], retention_ratio=0.5)
        assert [video.span.num_frames for video in compressed.videos] == list(counts)
    assert grids[0][:, 0].tolist() == [2, 4]
    assert torch.equal(model.generate(**inputs, retention_ratio=1.0, **STEP), stock.generate(**inputs, **STEP))
    with pytest.raises(
        ValueError, match=r"without video_grid_thw\. Make the inputs with cacovid_hf\.with_video_reader"
    ):
        model.generate(**inputs, retention_ratio=0.5, **STEP)


@pytest.mark.parametrize("name", ["pixel_values_videos", "target_sizes_videos"])
def test_grids_without_pixels(name):
    stock, model = wrapped("minicpmv4_6")
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    del inputs[name]
    with pytest.raises(ValueError, match=f"video_grid_thw is given without .*{name}.*: pass everything"):
        model.compress(**inputs, retention_ratio=0.5)


@pytest.mark.parametrize(("name", "value"), [("slice_mode", True), ("stack_frames", 2)])
def test_a_frame_is_one_picture(name, value):
    """Settings of a checkpoint that cut frames are not taken over; a call that asks for it is refused."""
    stock = tiny_processor("minicpmv4_6")
    stock.video_processor.slice_mode = True
    processor = with_video_reader(stock)
    ask = dict(text=["<video> what"], videos=[decoded(3, 448, 896)], do_sample_frames=False, return_tensors="pt")
    assert processor(**ask)["video_grid_thw"].tolist() == [[3, 4, 12]]
    with pytest.raises(ValueError, match=f"{name}={value}: a frame must be one picture"):
        processor(**ask, **{name: value})


def test_the_largest_number_of_frames_of_a_call():
    """`max_num_frames`, as the model's own examples give it."""
    reader = with_video_reader(tiny_processor("minicpmv4_6")).video_processor
    minute = VideoMetadata(total_num_frames=1500, fps=25.0, duration=60.0)
    assert len(reader.sample_frames(metadata=minute)) == 60
    assert len(reader.sample_frames(metadata=minute, max_num_frames=128)) == 60
    for most in (16, 64):
        rule = tiny_processor("minicpmv4_6").video_processor.sample_frames(minute, max_num_frames=most)
        assert reader.sample_frames(metadata=minute, max_num_frames=most).tolist() == rule
    unknown = VideoMetadata(total_num_frames=300)
    assert len(reader.sample_frames(metadata=unknown)) == 128


@pytest.mark.parametrize("of_stock", [True, False])
@pytest.mark.parametrize("numbered", [True, False])
def test_numbers_in_front_of_the_videos_of_a_session(numbered, of_stock, tmp_path):
    """`use_image_id`, which is on unless the checkpoint says otherwise."""
    stock = tiny_processor("minicpmv4_6")
    stock.default_use_image_id = numbered
    processor = with_video_reader(stock)
    clips = [write_video(tmp_path / f"{frames}.mp4", frames, fps=5) for frames in (20, 45)]
    _, model = wrapped("minicpmv4_6")
    session = model.session(clips, stock if of_stock else processor)
    whole = processor.apply_chat_template([user("what", *clips)], **CHAT)
    assert torch.equal(session.prompt([session._chat("what")])["input_ids"], whole["input_ids"])


@pytest.mark.parametrize("by", ["config", "call"])
def test_four_times_the_tokens(by, tmp_path):
    """`downsample_mode="4x"`, of the config or the call: the tower does not merge patches, and a dropped token is one that is not there."""
    stock, model = wrapped("minicpmv4_6")
    asked = {"downsample_mode": "4x"} if by == "call" else {}
    if by == "config":
        stock.config.downsample_mode = "4x"
    processor = with_video_reader(tiny_processor("minicpmv4_6"))
    clip = write_video(tmp_path / "clip.mp4", 20, fps=5)
    inputs = processor.apply_chat_template([user("what", clip)], **CHAT, processor_kwargs={"downsample_mode": "4x"})
    compressed = model.compress(**inputs, **asked, retention_ratio=0.25, compressor="visionzip")
    (video,) = compressed.videos
    frames, height, width = inputs["video_grid_thw"][0].tolist()
    assert video.span.grid == (frames, height // 2, width // 2)
    assert int(video.keep.sum()) == video.span.num_tokens // 4
    whole = stock.generate(**family_of(stock).of_stock(inputs), **asked, **STEP)
    assert torch.equal(model.generate(**inputs, **asked, retention_ratio=1.0, **STEP), whole)
    chunks = model.encode_videos(**inputs, **asked, frames_per_chunk=1)
    once = model.encode_videos(**inputs, **asked, frames_per_chunk=None)
    torch.testing.assert_close(chunks.features[0], once.features[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", [(12, 8), (8, 8)], ids=str)
def test_the_stock_model_takes_frames_of_two_sizes(other):
    """Each as it is alone: before `since` it does not."""
    stock = stock_model("minicpmv4_6").model
    pixels = [torch.randn(1, 3, 14, height * width * 14) for height, width in ((8, 12), other)]
    sizes = torch.tensor([(8, 12), other])
    together = stock.get_video_features(torch.cat(pixels, dim=-1), sizes).pooler_output
    for number, features in enumerate(together):
        (alone,) = stock.get_video_features(pixels[number], sizes[number : number + 1]).pooler_output
        torch.testing.assert_close(features, alone)
