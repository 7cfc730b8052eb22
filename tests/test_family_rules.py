"""Processors of further families that read files by the family's own rule: what stock code chooses, calls, parts, saving and training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_training
from helpers.chats import CHAT
from helpers.media import write_video
from helpers.models import BY_NAME
from helpers.processors import tiny_processor
from helpers.published import PUBLISHED
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from cacovid_hf.processing import with_video_reader
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.video.files import read_chosen_frames

pytestmark = pytest.mark.spread(1)


@dataclass(frozen=True)
class Rule:
    """What a family's processor does.

    Attributes:
        clip: frames of nine seconds of five a second.
        calls: frames of the clip by what a call says.
    """

    clip: int
    calls: dict[str, tuple[dict[str, Any], int]]


RULES = {
    "video_llama_3": Rule(
        clip=9,
        calls={
            "fps": ({"fps": 2}, 18),
            "max_fps": ({"max_fps": 2}, 18),
            "num_frames": ({"num_frames": 6}, 6),
            "both": ({"num_frames": 100, "fps": 5}, 45),
        },
    ),
    "glm4v": Rule(
        clip=18,
        calls={
            "fps": ({"fps": 1}, 10),  # nine, and the last one again to fill a step
            "max_fps": ({"max_fps": 1}, 10),
            "num_frames": ({"num_frames": 7}, 8),
            "both": ({"num_frames": 100, "fps": 5}, 46),
        },
    ),
    "glm46v": Rule(
        clip=46,  # six a second where the file has five
        calls={
            "fps": ({"fps": 1}, 10),  # evenly, for the rule has none
            "max_fps": ({"max_fps": 2}, 18),
            "num_frames": ({"num_frames": 7}, 8),
            "both": ({"num_frames": 100, "fps": 5}, 46),
        },
    ),
    "minicpmv4_6": Rule(
        clip=9,
        calls={
            "fps": ({"fps": 2}, 18),
            "max_fps": ({"max_fps": 2}, 18),
            "num_frames": ({"num_frames": 6}, 6),
            "both": ({"num_frames": 100, "fps": 5}, 45),
        },
    ),
    "gemma4": Rule(
        clip=32,
        calls={
            "fps": ({"fps": 2}, 18),
            "max_fps": ({"max_fps": 2}, 18),
            "num_frames": ({"num_frames": 6}, 6),
            "both": ({"num_frames": 100, "fps": 5}, 45),
        },
    ),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """45 pictures, five a second."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 45, fps=5, gop=10)


@pytest.fixture(scope="module", params=RULES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return with_video_reader(tiny_processor(family))


def ask(video, **beside):
    part = {"type": "video", "path": str(video), **beside}
    return [{"role": "user", "content": [part, {"type": "text", "text": "what color"}]}]


def frames_of(inputs, family):
    if family == "gemma4":
        return int(inputs["num_frames_per_video"][0])
    return PUBLISHED[family].per_step * int(inputs["video_grid_thw"][0, 0])


def test_a_path_gives_what_the_stock_processor_gives(family, processor, clip):
    """The frames that the stock rule chooses, and their times in the prompt."""
    stock = tiny_processor(family)
    with clip.open("rb") as file:
        frames, metadata = read_chosen_frames(
            file,
            lambda found: np.asarray(stock.video_processor.sample_frames(metadata=found, **PUBLISHED[family].rate)),
        )
    text = stock.apply_chat_template(ask("x"), add_generation_prompt=True)
    expected = stock(text=text, videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    inputs = processor.apply_chat_template(ask(clip), **CHAT)
    assert frames_of(inputs, family) == RULES[family].clip
    assert set(inputs) - set(BY_NAME[family].own_inputs) == set(expected)
    for name in expected:
        assert torch.equal(inputs[name], expected[name]), name


def test_what_a_call_asks_for(family, processor, clip):
    for call, frames in RULES[family].calls.values():
        assert frames_of(processor.apply_chat_template(ask(clip), **CHAT, **call), family) == frames, call


def test_a_part_is_sampled_as_the_whole_would_be(family, processor, clip):
    """Three seconds, none from outside."""
    metadata = VideoMetadata(total_num_frames=45, fps=5, duration=9.0)
    chosen = processor.video_processor.sample_frames(metadata=metadata, start=3.0, end=6.0)
    assert chosen.min() >= 15
    assert chosen.max() <= 30
    inputs = processor.apply_chat_template(ask(clip, video_start=3.0, video_end=6.0), **CHAT)
    assert frames_of(inputs, family) == len(chosen) < RULES[family].clip


def test_a_saved_processor_loads(family, processor, clip, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor)
    assert type(again.video_processor) is type(processor.video_processor)
    assert frames_of(again.apply_chat_template(ask(clip), **CHAT), family) == RULES[family].clip
    again.video_processor.num_frames = 4
    again.save_pretrained(tmp_path)
    again = with_video_reader(AutoProcessor.from_pretrained(tmp_path))
    assert frames_of(again.apply_chat_template(ask(clip), **CHAT), family) == 4


def test_a_training_batch(family, processor, clip, tmp_path):
    """Clips of two lengths: each prompt as it is alone, in the trainer as in a call, and a step moves the policy."""
    model, _, trainer = small_training.trainer(tmp_path, family, steps=2, samples=4)
    short = write_video(tmp_path / "short.mp4", 10, fps=5, gop=10)
    sample = dict(
        problem="what", options=["A. red", "B. blue"], problem_type="multiple choice", solution="<answer>A</answer>"
    )
    collator = AnswerCollator(processor, allowed_roots=["/"])
    paths = (clip, short)
    batch = collator([{**sample, "path": str(path)} for path in paths])
    assert batch["skipped"] == []
    prompt = trainer._embed(batch["inputs"])
    order = [batch["places"].index(number) for number in range(len(paths))]
    for path, row in zip(paths, order, strict=True):
        (alone,) = collator([{**sample, "path": str(path)}])["inputs"]
        single, span = model.embed(**alone), prompt.layout.videos[row]
        expected = single.video_features(single.layout.videos[0])
        torch.testing.assert_close(prompt.video_features(span), expected, atol=1e-4, rtol=1e-4)
        assert len(prompt.layout.text_places[row]) == len(single.layout.text_places[0])
    before = [weight.clone() for weight in model.policy.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
