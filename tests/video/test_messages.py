"""Chat messages: every part and key is followed or refused; what is followed shows the frames that were counted out by hand."""

import base64
import contextlib
import copy
import io
import math
import os
import pickle
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.chats import CHAT
from helpers.media import numbered_picture, write_video
from helpers.processors import tiny_processor
from PIL import Image

from cacovid_hf import with_video_reader
from cacovid_hf.video.files import read_chosen_frames
from cacovid_hf.video.limits import ReadingLimits, reading_limits
from cacovid_hf.video.messages import ONE_SIZE, ClipSettings, VideoAddress, follow_messages
from cacovid_hf.video.pictures import read_picture
from cacovid_hf.video.reader import logger


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """400 pictures, ten a second."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 400, fps=10)


@pytest.fixture(scope="module")
def qwen():
    return with_video_reader(tiny_processor("qwen2_5_vl"))


@pytest.fixture(scope="module")
def llava():
    return with_video_reader(tiny_processor("llava_onevision"))


def ask(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": "what color"}]}]


def followed(part):
    """What the walk makes of one part."""
    return follow_messages(ask(part))[0]["content"][0]


# By hand: frame n is shown at n / 10 s; so many frames are spread evenly from the first to the last of the part, rounded down.
CHOSEN = [
    ({}, [12 * i + (27 * i) // 31 for i in range(32)]),  # 399 / 31 = 12 and 27 / 31
    ({"fps": 0.25}, [0, 44, 88, 133, 177, 221, 266, 310, 354, 399]),
    ({"max_fps": 0.1}, [0, 133, 266, 399]),
    ({"nframes": 4}, [0, 133, 266, 399]),
    ({"num_frames": 6}, [0, 79, 159, 239, 319, 399]),
    ({"num_frames": 4.0}, [0, 133, 266, 399]),
    ({"nframes": np.int64(4)}, [0, 133, 266, 399]),
    ({"fps": np.float32(0.25)}, [0, 44, 88, 133, 177, 221, 266, 310, 354, 399]),
    ({"max_frames": 4}, [0, 133, 266, 399]),
    ({"nframes": 40}, [10 * i + (9 * i) // 39 for i in range(40)]),  # 399 / 39 = 10 and 9 / 39; more than one a second
    ({"nframes": 40, "fps": 0.1}, [0, 133, 266, 399]),
    ({"max_frames": 3, "fps": 0.1}, [0, 199, 399]),
    ({"video_end": 2.0}, [0, 19]),
    ({"video_start": 38.0}, [380, 399]),
    ({"video_start": 10, "video_end": 14}, [100, 113, 126, 139]),
    ({"video_start": 10.0, "video_end": 12.0, "nframes": 5}, [100, 104, 109, 114, 119]),
    ({"video_start": 20.0, "fps": 0.1, "nframes": None}, [200, 399]),
]


@pytest.mark.parametrize(("beside", "indices"), CHOSEN)
def test_settings_beside_a_video_choose_its_frames(beside, indices, qwen, clip):
    frames, _ = read_chosen_frames(clip, lambda metadata: indices)
    inputs = qwen.apply_chat_template(ask({"type": "video", "video": str(clip), **beside}), **CHAT)
    stock = tiny_processor("qwen2_5_vl").video_processor([frames], return_tensors="pt")
    for name in ("pixel_values_videos", "video_grid_thw"):
        assert torch.equal(inputs[name], stock[name])
    start, end = beside.get("video_start") or 0, beside.get("video_end") or 40
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2 * (end - start) / len(indices))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_each_video_has_its_own(family, clip, request):
    """Of two videos in a prompt, and of two prompts in a batch."""
    processor = with_video_reader(tiny_processor(family))
    first, second = (
        {"type": "video", "path": str(clip), "nframes": 4},
        {"type": "video", "url": str(clip), "video_end": 4.0},
    )
    alone = [processor.apply_chat_template(ask(part), **CHAT)["pixel_values_videos"] for part in (first, second)]
    together = ask(first)
    together[0]["content"].insert(1, second)
    for inputs in (
        processor.apply_chat_template(together, **CHAT),
        processor.apply_chat_template([ask(first), ask(second)], **CHAT, processor_kwargs={"padding": True}),
    ):
        axis = 1 if family == "llava_onevision" else 0
        assert torch.equal(
            inputs["pixel_values_videos"], torch.cat(alone, dim=axis).view_as(inputs["pixel_values_videos"])
        )


def test_pixels_of_one_video(qwen, clip):
    """A frame of 64 x 48 pixels is scaled up to 56 x 56 or more here: 56 x 84 pixels, 4 x 6 patches; within 28 x 28 there are 2 x 2."""
    parts = [
        {"type": "video", "video": str(clip), "nframes": 2, **more}
        for more in ({}, {"max_pixels": 28 * 28}, {"min_pixels": 112 * 112})
    ]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": "what"}]}
    inputs = qwen.apply_chat_template([message], **CHAT)
    grids = inputs["video_grid_thw"].tolist()
    assert grids[1] == [1, 2, 2]
    assert grids[0][1] * grids[0][2] * 14 * 14 < 112 * 112 <= grids[2][1] * grids[2][2] * 14 * 14
    assert len(inputs["pixel_values_videos"]) == sum(t * h * w for t, h, w in grids)
    places = sum(t * h * w // 4 for t, h, w in grids)
    assert int((inputs["input_ids"] == qwen.video_token_id).sum()) == places


@pytest.mark.parametrize("place", ["call", "videos_kwargs", "frames"])
@pytest.mark.parametrize(
    ("bounds", "patches"),
    [
        ({"max_pixels": 28 * 28}, (2, 2)),
        ({"min_pixels": 112 * 112}, (8, 10)),  # 48 x 64 pixels times sqrt(12544 / 3072), rounded up to 28s: 112 x 140
        ({"min_pixels": 56 * 84, "max_pixels": 84 * 84}, (6, 6)),  # times sqrt(4704 / 3072): 84 x 84
        ({"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}}, (2, 2)),
    ],
)
def test_pixels_of_a_call(qwen, clip, place, bounds, patches):
    """One bound alone too, which transformers 5.17 passes over."""
    if place == "frames":
        inputs = qwen(
            text="<video>", videos=[np.zeros((2, 48, 64, 3), np.uint8)], fps=1.0, return_tensors="pt", **bounds
        )
    else:
        settings = dict(bounds) if place == "call" else {"videos_kwargs": dict(bounds)}
        part = {"type": "video", "video": str(clip), "nframes": 2}
        inputs = qwen.apply_chat_template(ask(part), **CHAT, processor_kwargs=settings)
    assert inputs["video_grid_thw"].tolist() == [[1, *patches]]


def test_pixels_of_a_video_go_before_those_of_the_call(qwen, clip):
    part = {"type": "video", "video": str(clip), "nframes": 2, "max_pixels": 28 * 28}
    inputs = qwen.apply_chat_template(ask(part), **CHAT, processor_kwargs={"max_pixels": 112 * 112})
    assert inputs["video_grid_thw"].tolist() == [[1, 2, 2]]
    with pytest.raises(ValueError, match="min_pixels=3136 is over max_pixels=784: give a larger max_pixels"):
        qwen.apply_chat_template(ask(part), **CHAT, processor_kwargs={"min_pixels": 3136})


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"min_pixels": 3136, "max_pixels": 784}, "min_pixels=3136 is over max_pixels=784"),
        ({"min_pixels": 10**7}, "at least 10000000 pixels and at most 112896: give min_pixels and max_pixels in order"),
        ({"max_pixels": 0}, "max_pixels=0: give a whole number of at least 1"),
        ({"max_pixels": -5}, "max_pixels=-5: give a whole number of at least 1"),
        ({"size": {"shortest_edge": 3136, "longest_edge": 784}}, "at least 3136 pixels and at most 784"),
    ],
)
def test_pixels_that_cannot_be(qwen, bounds, reason):
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=reason):
        qwen(text="<video>", videos=[frames], fps=1.0, return_tensors="pt", **bounds)


def test_pixels_where_frames_have_one_size(llava):
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    for settings in ({"max_pixels": 784}, {"videos_kwargs": {"max_pixels": 784}}):
        with pytest.raises(ValueError, match="max_pixels is not followed, because this model sees every frame in one"):
            llava(text="<video>", videos=[frames], return_tensors="pt", **settings)
        with pytest.raises(ValueError, match="max_pixels is not followed, because this model sees every frame in one"):
            llava.apply_chat_template(ask({"type": "text", "text": "a"}), **settings)


def test_frames_of_a_call_that_are_none(qwen):
    with pytest.raises(ValueError, match=r"frames of shape \(0, 48, 64, 3\) and type uint8 are not a video"):
        qwen(text="<video>", videos=[np.zeros((0, 48, 64, 3), np.uint8)], return_tensors="pt")


VIDEO = {"type": "video", "video": "a.mp4"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "path": "a.mp4"},
        {"type": "video", "url": "a.mp4"},
        {"type": "video", "video": Path("a.mp4")},
        {"type": "video", "path": Path("a.mp4")},
        {"type": "video", "video_url": "a.mp4"},
        {"type": "video", "video": {"url": "a.mp4"}},
        {"type": "video", "video": {"path": "a.mp4", "bytes": None}},
        {"type": "video_url", "video_url": "a.mp4"},
        {"type": "video_url", "video_url": {"url": "a.mp4"}},
        {"type": "input_video", "video_url": "a.mp4"},
        {"type": "input_video", "input_video": {"url": "a.mp4"}},
        {"type": "video", "video": "a.mp4", "text": None, "fps": None, "image": None},
        {"video": "a.mp4"},
    ],
)
def test_names_of_a_video(part):
    given = copy.deepcopy(part)
    assert followed(part) == VIDEO
    assert part == given


def test_contents_of_a_video():
    part = {"type": "input_video", "input_video": {"data": "AAAA", "format": "webm"}}
    assert followed(part) == {"type": "video", "video": "data:video/webm;base64,AAAA"}
    for content in ("AAAA", "data:video/mp4;base64,AAAA"):
        assert followed({"type": "video", "data": content}) == {"type": "video", "video": "data:video/mp4;base64,AAAA"}
    assert followed({"type": "image", "base64": "AAAA"}) == {"type": "image", "image": "data:image/png;base64,AAAA"}


def test_settings_in_a_nested_address():
    part = followed({"type": "video_url", "video_url": {"url": "a.mp4", "fps": 2}, "video_end": 3})
    assert part["video"] == "a.mp4"
    assert part["video"].settings == ClipSettings(max_fps=2.0, end=3.0)


def test_other_parts():
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert followed({"type": "video", "video": frames})["video"] is frames
    assert followed({"type": "video"}) == {"type": "video"}
    assert followed({"type": "input_text", "text": "a"}) == {"type": "text", "text": "a"}
    assert followed("a") == {"type": "text", "text": "a"}
    assert followed({"type": "text", "text": "a", "cache_control": {}, "video": None}) == {"type": "text", "text": "a"}
    for part in (
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}},
        {"type": "input_image", "image_url": "a.png"},
        {"type": "image", "path": Path("a.png")},
    ):
        assert followed(part) == {"type": "image", "image": "a.png"}
    batch = [[{"role": "user", "content": "a"}], ask(VIDEO)]
    assert follow_messages(batch) == batch
    message = {"role": "assistant", "content": None, "tool_calls": [1]}
    assert follow_messages([message]) == [message]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({**VIDEO, "fsp": 2}, "'fsp' of a part of type video is not followed: did you mean fps"),
        ({**VIDEO, "nframe": 2}, "did you mean nframes"),
        ({**VIDEO, "FPS": 2}, "'FPS' of a part of type video is not followed: did you mean fps"),
        ({**VIDEO, "start": 2}, "start beside a video is not followed: give seconds as video_start"),
        ({**VIDEO, "end_time": 2}, "end_time beside a video is not followed: give seconds as video_end"),
        ({**VIDEO, "frames": 8}, "frames beside a video is not followed: .* their number as nframes"),
        (
            {**VIDEO, "min_pixels": 100, "max_pixels": 50},
            "min_pixels=100 is over max_pixels=50: give a larger max_pixels",
        ),
        ({"type": "video", "vidoe": "a.mp4"}, "'vidoe' of a part of type video is not followed: did you mean video\\?"),
        ({"type": "video", "videos": ["a.mp4"]}, "'videos' of a part of type video .*: did you mean video\\?"),
        ({"type": "video", "video_path": "a.mp4"}, "'video_path' of a part of type video .*: did you mean video\\?"),
        ({"type": "video", "Video": "a.mp4"}, "'Video' of a part of type video .*: did you mean video\\?"),
        ({"type": "video", "file": "a.mp4"}, "'file' of a part .*: give the video under the key 'video'"),
        ({"type": "image", "images": ["a.png"]}, "'images' of a part of type image .*: did you mean image\\?"),
        ({"type": "image", "file": "a.png"}, "'file' of a part .*: give the image under the key 'image'"),
        ({"type": "VIDEO", "video": "a.mp4"}, "'VIDEO' is not followed: did you mean video\\?"),
        ({"type": "video", "video": ""}, "The address of a part of type video is empty: give a path"),
        ({"type": "video_url", "video_url": {"url": " "}}, "The address of a part of type video is empty"),
        ({"type": "video", "video": [""]}, "The address of a part of type image is empty"),
        ({"type": "image_url", "image_url": {"url": ""}}, "The address of a part of type image is empty"),
        ({"type": "video", "video": {1}}, "A video of type set is not followed"),
        ({"type": "video", "video": object()}, "A video of type object is not followed"),
        ({"type": "video", "video": [["a.png"]]}, "A video of type list is not followed"),
        ({"type": "video", "video": ["a.png", np.zeros((4, 4, 3))]}, "A video of type list is not followed"),
        (
            {"type": "video", "video": np.zeros((4, 4, 3))},
            r"frames of shape \(4, 4, 3\) and type float64 are not a video",
        ),
        ({"type": "video", "video": np.zeros((0, 4, 4, 3))}, r"frames of shape \(0, 4, 4, 3\) .* are not a video"),
        ({"type": "video", "video": np.array("a.mp4")}, r"frames of shape \(\) and type <U5 are not a video"),
        ({**VIDEO, "video_begin": 2}, "'video_begin' of a part of type video is not followed"),
        ({**VIDEO, "total_pixels": 2}, "total_pixels beside a video is not followed: give max_pixels"),
        ({**VIDEO, "resized_height": 28}, "resized_height beside a video is not followed"),
        ({**VIDEO, "min_frames": 4}, "min_frames beside a video is not followed: give nframes"),
        ({**VIDEO, "sample_fps": 4}, "sample_fps beside a video is not followed: give video_metadata"),
        ({**VIDEO, "retention_ratio": 0.5}, "'retention_ratio' of a part"),
        ({**VIDEO, "fps": 0}, "fps=0 beside a video: give a number over 0"),
        ({**VIDEO, "fps": "2"}, "fps='2' beside a video: give a number"),
        ({**VIDEO, "nframes": 2.5}, r"nframes=2.5 beside a video: give a whole number of at least 1"),
        ({**VIDEO, "nframes": True}, "nframes=True beside a video"),
        ({**VIDEO, "video_start": -1}, "video_start=-1 beside a video: give a number of at least 0"),
        ({**VIDEO, "video_start": 5, "video_end": 5}, r"video_start=5.0 is not before video_end=5.0"),
        ({**VIDEO, "nframes": 2, "num_frames": 2}, "says again what another key"),
        ({**VIDEO, "nframes": 2, "max_frames": 4}, "says it twice"),
        ({**VIDEO, "path": "b.mp4"}, "holds video and path: give one of them"),
        ({"type": "video", "fps": 2}, "fps beside a video without an address would choose nothing"),
        (
            {"type": "video", "video": np.zeros((2, 4, 4, 3)), "fps": 2},
            "fps beside decoded frames would choose nothing",
        ),
        ({"type": "video", "video": {"fps": 2}}, "video of a part of type video has no url"),
        ({"type": "video_url"}, "'video_url' has no address: give it under the key 'video_url'"),
        ({"type": "vidoe", "video": "a.mp4"}, "'vidoe' is not followed: did you mean video"),
        ({"type": "video_file", "file": "a.mp4"}, "'video_file' is not followed: did you mean video"),
        ({"type": "input_audio", "input_audio": {}}, "holds sound, which these models cannot hear"),
        ({"type": "file", "file": {}}, "'file' is not followed: give text, image or video"),
        ({"type": "text", "text": "a", "video": "a.mp4"}, "'video' of a part of type text is not followed"),
        ({"type": "text"}, "has no text"),
        ({"text": "a", "video": "b.mp4"}, "has no type: give text, image or video"),
        ({"type": "image", "image": "a.png", "max_pixels": 4}, "'max_pixels' of a part of type image"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "detail='low'"),
        (
            {"type": "image_url", "image_url": {"url": "data:video/mp4;base64," + "A" * 55_000}},
            "is a video in a part for a picture",
        ),
        ({"type": "image", "url": "https://films.example/a.MP4?x=1"}, "is a video in a part for a picture"),
        (7, "is a int: give a dict"),
    ],
)
def test_what_is_refused(part, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        followed(part)
    assert len(str(caught.value)) < 300


USER = {"role": "user", "content": "what"}


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ("what", "A conversation is a str: give a list of messages"),
        (None, "A conversation is a NoneType"),
        (USER, "A conversation is a dict: give a list of messages"),
        ([], "A conversation has no messages"),
        ([[USER], []], "A conversation has no messages"),
        ([USER, [USER]], "has a message beside lists of messages: give a list of lists"),
        ([[[USER]]], "A message is a list: give .* a batch as a list of lists"),
        (["what"], "A message is a str: give "),
        ([None], "A message is a NoneType"),
        ([{"content": "what"}], "The role None of a message is not one: give 'user'"),
        ([{**USER, "role": "User"}], "The role 'User' of a message is not one: did you mean user"),
        ([{**USER, "role": " system"}], "The role ' system' of a message is not one: did you mean system"),
        ([{**USER, "content": 5}], "content is a int: give a text, or a list of parts"),
        ([{**USER, "content": b"what"}], "content is a bytes: give a text, or a list of parts"),
        ([{**USER, "content": "a\ud800"}], "has half of a character, a lone surrogate: correct the text"),
        ([{**USER, "content": [{"type": "text", "text": "\udfff"}]}], "has half of a character, a lone surrogate"),
        ([{**USER, "retention_ratio": 0.5}], "retention_ratio beside a message's content .* argument of generate"),
        ([{**USER, "compressor": "uniform"}], "compressor beside a message's content .* argument of generate"),
    ],
)
def test_conversations_that_are_none(conversation, reason):
    with pytest.raises(ValueError, match=reason):
        follow_messages(conversation)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nframes": 4}, "nframes of a whole call is not followed: give it beside the video in its message"),
        ({"max_frames": 4}, "max_frames of a whole call is not followed"),
        ({"video_start": 1.0}, "video_start of a whole call is not followed"),
        ({"video_end": 1.0}, "video_end of a whole call is not followed"),
        ({"total_pixels": 1000}, "total_pixels of a whole call is not followed: give max_pixels"),
        ({"frames": 4}, "frames of a whole call is not followed"),
        ({"num_frames": "8"}, "num_frames='8': give a whole number"),
        ({"num_frames": 2.5}, r"num_frames=2\.5: give a whole number"),
        ({"num_frames": True}, "num_frames=True: give a whole number"),
        ({"fps": "2"}, "fps='2': give a number over 0"),
        ({"max_fps": [1]}, r"max_fps=\[1\]: give a number over 0"),
        ({"size": 3}, "size=3: give {'shortest_edge'"),
        ({"retention_ratio": 0.5}, "retention_ratio is not an argument of the processor: give it to model.generate"),
        ({"compressor": "uniform"}, "compressor is not an argument of the processor"),
        (
            {"video_metadata": {"fps": 2.0}},
            "video_metadata is of decoded frames, and files have their own: leave it out",
        ),
    ],
)
def test_settings_of_a_call_that_nothing_would_read(qwen, clip, settings, reason):
    with pytest.raises(ValueError, match=reason):
        qwen.apply_chat_template(ask({"type": "video", "video": str(clip)}), **CHAT, processor_kwargs=dict(settings))
    if next(iter(settings)) in ("nframes", "max_frames", "num_frames", "fps", "video_start"):
        with pytest.raises(ValueError, match=reason):
            qwen.apply_chat_template(ask({"type": "video", "video": str(clip)}), **CHAT, **settings)


def test_the_rate_of_decoded_frames_alone(qwen):
    """Two frames a step at two frames a second are one second."""
    frames = np.stack([numbered_picture(i) for i in range(4)])
    inputs = qwen(text="<video>", videos=[frames], video_metadata={"fps": 2.0}, return_tensors="pt")
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(1.0)


PARTS_ALONE = (  # as LLaVA-OneVision's own template does
    "{% for message in messages %}{{ message.role }}{% for part in message.content | selectattr('type', 'equalto', 'video') %}"
    " <video>{% endfor %}{% for part in message.content | selectattr('type', 'equalto', 'text') %} {{ part.text }}{% endfor %};{% endfor %}"
)


def test_texts_where_the_template_writes_parts_alone(llava, monkeypatch):
    """Such a template drops a content that is a text, and says nothing."""
    messages = [
        {"role": "system", "content": "the color"},
        *ask({"type": "video", "video": "a.mp4"}),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "what is green"},
    ]
    expected = "system the color;user <video> what color;assistant red;user what is green;"
    monkeypatch.setattr(llava, "chat_template", PARTS_ALONE)
    stock = tiny_processor("llava_onevision")
    stock.chat_template = PARTS_ALONE
    assert stock.apply_chat_template(messages) == "system;user <video> what color;assistant;user;"
    assert llava.apply_chat_template(messages) == expected
    assert llava.apply_chat_template([messages, messages[:1]]) == [expected, "system the color;"]
    plain = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert llava.apply_chat_template(messages[:1], chat_template=plain) == "the color"


@pytest.mark.parametrize("key", ["video", "videos", "images", "fps"])
def test_keys_beside_the_content(key):
    with pytest.raises(ValueError, match=f"The key '{key}' beside a message's content is not followed"):
        follow_messages([{"role": "user", "content": "a", key: "b"}])


def test_pixel_bounds_where_frames_have_one_size(llava, clip):
    with pytest.raises(
        ValueError,
        match="max_pixels beside a video is not followed, because this model sees every frame in one size: give size in",
    ):
        llava.apply_chat_template(ask({"type": "video", "video": str(clip), "max_pixels": 784}), **CHAT)


def test_a_part_behind_the_end(qwen, clip):
    with pytest.raises(ValueError, match=r"The video lasts 40\.0 seconds, and the part to show begins at 50\.0 s"):
        qwen.apply_chat_template(ask({"type": "video", "video": str(clip), "video_start": 50}), **CHAT)


def test_an_address_with_settings_is_a_text():
    address = VideoAddress("a.mp4", ClipSettings(num_frames=3))
    for again in (copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert again == "a.mp4"
        assert again.settings == address.settings


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("p") / "a#1 picture.png"
    Image.fromarray(numbered_picture(5)).save(path)
    return path


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_pictures(family, picture):
    processor = with_video_reader(tiny_processor(family))
    inside = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    expected = tiny_processor(family).apply_chat_template(ask({"type": "image", "image": Image.open(picture)}), **CHAT)
    for part in (
        {"type": "image", "path": picture},
        {"type": "image", "url": f"file://{picture}"},
        {"type": "image_url", "image_url": {"url": inside}},
    ):
        inputs = processor.apply_chat_template(ask(part), **CHAT)
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_pictures_that_are_none(qwen, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        qwen.apply_chat_template(ask({"type": "image", "path": tmp_path / "none.png"}), **CHAT)
    inside = "data:image/png;base64," + base64.b64encode(b"no picture" * 5_000).decode()
    with pytest.raises(ValueError, match="is not a readable picture") as caught:
        qwen.apply_chat_template(ask({"type": "image_url", "image_url": {"url": inside}}), **CHAT)
    assert len(str(caught.value)) < 300


def test_pictures_are_bounded_before_decoding(tmp_path):
    """By their header alone: the pixels of this one are not even there. Files that start other programs are not opened."""
    header = struct.pack(">II5B", 16_385, 8_192, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*one) for one in ((b"IHDR", header), (b"IDAT", b""))))
    with pytest.raises(
        ValueError, match=r"bomb\.png has 16385x8192 pixels, over the limit max_picture_pixels=134217728"
    ):
        read_picture(str(bomb))
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    with reading_limits(ReadingLimits(max_picture_pixels=7999)), pytest.raises(ValueError, match="100x80 pixels"):
        read_picture(str(tmp_path / "a.png"))
    assert read_picture(str(tmp_path / "a.png")).size == (100, 80)
    Image.new("RGB", (100, 80)).save(tmp_path / "a.eps")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("a.eps", "pipe.png"):
        with pytest.raises(ValueError, match="is not a readable picture"):
            read_picture(str(tmp_path / name))


def test_damaged_pictures_have_one_error():
    """Also where Pillow raises something else than of other pictures: of a chunk without a name, a `SyntaxError`."""
    header = png_chunk(b"IHDR", struct.pack(">II5B", 8, 8, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(8 * 25))
    broken = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows[:4]) + png_chunk(b"\x1e\x04\xc1\x82", rows[4:])
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(broken)).load()
    with pytest.raises(ValueError, match=r"is not a readable picture \(SyntaxError\): check it"):
        read_picture("data:image/png;base64," + base64.b64encode(broken).decode())


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_what_is_held_is_told_before_it_is_decoded(clip, picture, qwen):
    """A guard that a program sets hears of 4 frames of 64x64 pixels and of a picture, and may end the reading."""

    class Guard:
        def __init__(self, most):
            self.held, self.most = [], most

        def going_on(self):
            pass

        def holding(self, pixels):
            self.held.append(pixels)
            if sum(self.held) > self.most:
                raise ValueError("too much")

    message = ask({"type": "video", "path": clip, "nframes": 4})
    message[0]["content"].insert(0, {"type": "image", "path": picture})
    pixels = [
        math.prod(Image.open(picture).size),
        4 * math.prod(read_chosen_frames(clip, lambda clip: [0])[0].shape[1:3]),
    ]
    for most in (sum(pixels), sum(pixels) - 1):
        guard = Guard(most)
        expected = pytest.raises(ValueError, match="too much") if most < sum(pixels) else contextlib.nullcontext()
        with reading_limits(ReadingLimits(), guard), expected:
            qwen.apply_chat_template(message, **CHAT)
        assert guard.held == pixels


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_contents_in_an_address_take_no_more_than_they_are(family, tmp_path):
    """Stock code makes an entry of 8 bytes, and a number, for each character of an address."""
    path = write_video(tmp_path / "clip.mp4", 40, fps=10)
    with path.open("ab") as file:
        file.write(struct.pack(">I4s", 3_000_008, b"free") + bytes(3_000_000))
    address = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    processor = with_video_reader(tiny_processor(family))
    expected = processor.apply_chat_template(ask({"type": "video", "path": path, "nframes": 2}), **CHAT)
    tracemalloc.start()
    try:
        found = processor.apply_chat_template(ask({"type": "video", "path": address, "nframes": 2}), **CHAT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"])
    assert peak < 6 * len(address)


def test_frames_as_pictures(qwen, tmp_path):
    """A video given as the addresses of its frames."""
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(numbered_picture(i)).save(paths[-1])
    inputs = qwen.apply_chat_template(ask({"type": "video", "video": [str(paths[0]), *paths[1:]]}), **CHAT)
    frames = np.stack([numbered_picture(i) for i in range(4)])
    expected = tiny_processor("qwen2_5_vl").video_processor([frames], return_tensors="pt")
    assert torch.equal(inputs["pixel_values_videos"], expected["pixel_values_videos"])


def test_frames_without_times(qwen, caplog):
    """Their rate is that of the call's `fps`, and this is said; without, that 24 a second are assumed."""
    frames = np.stack([numbered_picture(i) for i in range(4)])
    for settings, seconds, said in (
        ({"fps": 2.0}, 1.0, "fps=2.0 is taken as their rate"),
        ({}, 2 / 24, "24 frames a second are assumed"),
    ):
        caplog.clear()
        type(logger).warning_once.cache_clear()
        with caplog.at_level("WARNING"):
            inputs = qwen(text=qwen.video_token, videos=[frames], return_tensors="pt", **settings)
        assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(seconds), settings
        assert said in caplog.text, settings


@pytest.mark.parametrize("key", ["parts", "contents", "attachments", "video_path"])
def test_a_message_that_says_it_under_another_name(key):
    with pytest.raises(ValueError, match=f"A message has '{key}' and no content"):
        follow_messages([{"role": "user", key: [{"type": "text", "text": "why"}]}], bounds_refused=ONE_SIZE)
    called = {"role": "assistant", "content": None, "tool_calls": []}
    assert follow_messages([called], bounds_refused=ONE_SIZE) == [called]


@pytest.mark.parametrize(
    "video", [b"bytes", 5, [], io.BytesIO(b"bytes")], ids=["bytes", "number", "nothing", "open file"]
)
def test_a_video_that_is_not_one(video):
    with pytest.raises(ValueError, match=r"A video (of type|is an open file)"):
        follow_messages([{"role": "user", "content": [{"type": "video", "video": video}]}], bounds_refused=ONE_SIZE)
