"""Qwen3-VL's processor with our reading of files: the family's own sampling, its words around frames, and its bounds of pixels."""

import numpy as np
import pytest
import torch
from helpers.chats import CHAT
from helpers.fresh import run_fresh
from helpers.media import write_video
from helpers.processors import tiny_processor
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from cacovid_hf.processing import with_video_reader
from cacovid_hf.video.files import read_chosen_frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """45 pictures, five a second."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 45, fps=5, gop=10)


@pytest.fixture(scope="module")
def processor():
    return with_video_reader(tiny_processor("qwen3_vl"))


def ask(video, **beside):
    part = {"type": "video", "path": str(video), **beside}
    return [{"role": "user", "content": [part, {"type": "text", "text": "what color"}]}]


def frames_of(inputs):
    return 2 * int(inputs["video_grid_thw"][0, 0])


def test_a_path_gives_what_the_stock_processor_gives(processor, clip):
    """Two frames a second of nine seconds: 18, evenly from the first to the last one, and their times in the prompt."""
    stock = tiny_processor("qwen3_vl")
    with clip.open("rb") as file:
        frames, metadata = read_chosen_frames(file, lambda found: np.linspace(0, 44, 18).round().astype(int))
    text = stock.apply_chat_template(ask("x"), add_generation_prompt=True)
    expected = stock(text=text, videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    inputs = processor.apply_chat_template(ask(clip), **CHAT)
    assert frames_of(inputs) == 18
    assert set(inputs) == set(expected)
    for name in inputs:
        assert torch.equal(inputs[name], expected[name]), name


@pytest.mark.parametrize(
    ("call", "frames"),
    [
        ({}, 18),
        ({"fps": 1}, 10),  # nine, and the last one again to fill a step
        ({"num_frames": 6}, 6),
        ({"num_frames": 100}, 18),  # at most so many
        ({"num_frames": 100, "fps": 5}, 46),
    ],
)
def test_what_a_call_asks_for(processor, clip, call, frames):
    assert frames_of(processor.apply_chat_template(ask(clip), **CHAT, **call)) == frames


def test_a_part_is_sampled_as_the_whole_would_be(processor, clip):
    """Three seconds: six frames, none from outside."""
    reader = processor.video_processor
    metadata = VideoMetadata(total_num_frames=45, fps=5, duration=9.0)
    chosen = reader.sample_frames(metadata=metadata, start=3.0, end=6.0)
    assert len(chosen) == 6
    assert chosen.min() >= 15
    assert chosen.max() <= 30
    assert frames_of(processor.apply_chat_template(ask(clip, video_start=3.0, video_end=6.0), **CHAT)) == 6


@pytest.mark.parametrize("name", ["max_pixels", "min_pixels", "total_pixels"])
def test_pixels_of_a_frame_are_refused_where_those_of_all_frames_are_bounded(processor, clip, name):
    """`size` is the way round. Two steps of 48 x 64 pixels, bounded by 4 x 1024: one token per step of 32 x 32 pixels, not two."""
    with pytest.raises(ValueError, match=f"{name} .*not followed.* give size in processor_kwargs") as refused:
        processor.apply_chat_template(ask(clip, **{name: 1024}), **CHAT)
    assert "max_pixels beside it" not in str(refused.value)
    if name != "total_pixels":
        for settings in ({name: 1024}, {"videos_kwargs": {name: 1024}}):
            with pytest.raises(
                ValueError, match=f"{name} is not followed, because this model bounds the pixels of all"
            ):
                processor.apply_chat_template(ask(clip), **CHAT, **settings)
    size = {"shortest_edge": 1024, "longest_edge": 4 * 1024}
    found = processor.apply_chat_template(ask(clip, nframes=4), **CHAT, processor_kwargs={"size": size})
    assert found["video_grid_thw"].tolist() == [[2, 2, 2]]


def test_a_saved_processor_loads_where_the_package_is_not_imported(processor, clip, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again).__name__ == "CaCoVidQwen3VLProcessor"
    assert type(again.video_processor).__name__ == "CaCoVidQwen3VLVideoProcessor"
    assert frames_of(again.apply_chat_template(ask(clip), **CHAT)) == 18
    # A folder of the program's own: the file beside the settings finds the classes.
    program = f"""
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(type(processor).__module__, type(processor.video_processor).__module__)
"""
    assert run_fresh(program, tmp_path, with_transformers=True).stdout.split() == [
        "cacovid_hf.processing",
        "cacovid_hf.video_processing",
    ]
