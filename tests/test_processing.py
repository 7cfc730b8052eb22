"""Video files through the stock processors, `apply_chat_template`, `AutoProcessor` and `pipeline`."""

import base64
import functools
import http.server
import threading

import numpy as np
import pytest
import torch
from helpers.chats import CHAT
from helpers.fresh import run_fresh
from helpers.media import numbered_picture, write_video
from helpers.models import stock_model
from helpers.processors import tiny_processor
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    AutoVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
    pipeline,
)

from cacovid_hf.processing import with_video_reader
from cacovid_hf.video.files import read_video

_MARKED = "<|vision_start|><|video_pad|><|vision_end|>"
VIDEO_TEXT = {
    "llava_onevision": "<video>",
    "qwen2_5_vl": _MARKED,
    "qwen2_vl": _MARKED,
    "llava_next_video": "<video>",
    "video_llava": "<video>",
    "perception_lm": "<video>",
}
READERS = {
    "llava_onevision": "CaCoVidLlavaOnevisionVideoProcessor",
    "qwen2_5_vl": "CaCoVidQwen2VLVideoProcessor",
    "qwen2_vl": "CaCoVidQwen2VLVideoProcessor",
    "llava_next_video": "CaCoVidLlavaNextVideoVideoProcessor",
    "video_llava": "CaCoVidVideoLlavaVideoProcessor",
    "perception_lm": "CaCoVidPerceptionLMVideoProcessor",
}
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{% if part.type == 'video' %}VIDEO{% else %}{{ part.text }} {% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def stock_processor(family, **video_settings):
    """A stock processor with a tokenizer made here; its placeholders are those of `models.stock_model`."""
    is_qwen = VIDEO_TEXT[family] == _MARKED
    specials = {"<|image_pad|>": 110, "<|video_pad|>": 111} if is_qwen else {"<image>": 110, "<video>": 111}
    specials |= {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<|vision_start|>": 3, "<|vision_end|>": 4}
    names = ["<unk>", "user", "assistant", "what", "happens"] + [f"word{i}" for i in range(120)]
    places = [i for i in range(120) if i not in specials.values()]
    vocabulary = specials | dict(zip(names, places, strict=False))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(specials))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=dict(zip(("image_token", "video_token"), specials, strict=False)),
    )
    template = TEMPLATE.replace("VIDEO", VIDEO_TEXT[family])
    if family == "llava_next_video":
        sizes = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return LlavaNextVideoProcessor(
            LlavaNextVideoVideoProcessor(**sizes, **video_settings),
            LlavaNextImageProcessor(**sizes),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
    if family == "video_llava":
        sizes = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return VideoLlavaProcessor(
            VideoLlavaImageProcessor(**sizes),
            VideoLlavaVideoProcessor(**sizes, **video_settings),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
    if family == "perception_lm":
        return PerceptionLMProcessor(
            PerceptionLMVideoProcessor(size={"height": 56, "width": 56}, **video_settings),
            PerceptionLMImageProcessor(tile_size=56),
            tokenizer,
            patch_size=14,
            chat_template=template,
        )
    if family == "llava_onevision":
        return LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}),
            tokenizer,
            LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56}, **video_settings),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=template,
        )
    video_processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, cap_pixels_per_frame=False, **video_settings
    )
    kind = Qwen2VLProcessor if family == "qwen2_vl" else Qwen2_5_VLProcessor
    return kind(Qwen2VLImageProcessor(), tokenizer, video_processor, chat_template=template)


@pytest.fixture(scope="module", params=VIDEO_TEXT)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return with_video_reader(stock_processor(family))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """320 pictures, one a second."""
    return write_video(tmp_path_factory.mktemp("clips") / "a clip.mp4", 320, fps=1, gop=20)


def ask(video, key="path"):
    return [{"role": "user", "content": [{"type": "video", key: video}, {"type": "text", "text": "what happens"}]}]


def num_frames(processor, inputs):
    """Frames behind the pixel values; Qwen's grid counts pairs of them."""
    if "video_grid_thw" in inputs:
        return 2 * inputs["video_grid_thw"][0, 0].item()
    return inputs["pixel_values_videos"].shape[1]


def assert_same_inputs(inputs, others):
    assert set(inputs) == set(others)
    for name in inputs:
        torch.testing.assert_close(inputs[name], others[name], rtol=0, atol=0)


def test_a_path_gives_what_the_stock_processor_gives_for_its_frames(family, processor, clip):
    frames, metadata = read_video(clip)
    stock = stock_processor(family)
    text = stock.apply_chat_template(ask("x"), add_generation_prompt=True)
    expected = stock(text=text, videos=[frames], video_metadata=[metadata], return_tensors="pt")

    inputs = processor.apply_chat_template(ask(str(clip)), **CHAT)

    assert num_frames(processor, inputs) == 32
    assert_same_inputs(inputs, expected)


def test_seconds_per_grid_step_are_those_of_the_clip(clip):
    stock = stock_processor("qwen2_5_vl")
    frames, metadata = read_video(clip)  # one frame every 10 seconds, two to a grid step
    text = stock.apply_chat_template(ask("x"))

    with_metadata = stock(text=text, videos=[frames], video_metadata=[metadata], return_tensors="pt")
    from_path = with_video_reader(stock).apply_chat_template(ask(str(clip)), **CHAT)
    without = stock(text=text, videos=[frames], return_tensors="pt")

    assert float(with_metadata["second_per_grid_ts"][0]) == pytest.approx(20.0)
    assert float(from_path["second_per_grid_ts"][0]) == pytest.approx(20.0)
    assert float(without["second_per_grid_ts"][0]) == pytest.approx(2 / 24)  # the silent default that metadata prevents


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_frames": 8}, 8),
        ({"max_fps": 0.05}, 16),
        ({"fps": 0.05}, 16),
        ({"num_frames": 8, "max_fps": 0.05}, 8),
        ({"num_frames": 320, "max_fps": 0.5}, 160),
        ({"do_sample_frames": False, "num_frames": 6}, 6),
        ({}, 32),
    ],
)
def test_sampling_settings_of_a_call(processor, clip, settings, expected):
    inputs = processor.apply_chat_template(ask(str(clip)), **CHAT, processor_kwargs=dict(settings))
    assert num_frames(processor, inputs) == expected
    inputs = processor(text=processor.video_token, videos=str(clip), return_tensors="pt", **settings)
    assert num_frames(processor, inputs) == expected


def test_num_frames_beside_the_messages(processor, clip):
    assert num_frames(processor, processor.apply_chat_template(ask(str(clip)), **CHAT, num_frames=4)) == 4


def test_saved_and_loaded_by_auto_processor(family, processor, clip, tmp_path):
    own = with_video_reader(processor)
    own.video_processor.num_frames, own.video_processor.max_fps = 6, 0.5
    own.save_pretrained(tmp_path)

    loaded = AutoProcessor.from_pretrained(tmp_path)

    assert type(loaded) is type(processor)
    assert (
        type(loaded.video_processor).__name__
        == READERS[family]
        == type(AutoVideoProcessor.from_pretrained(tmp_path)).__name__
    )
    assert loaded.video_processor.to_dict() == own.video_processor.to_dict()
    assert processor.video_processor.num_frames == 32
    inputs = loaded.apply_chat_template(ask(str(clip)), **CHAT)
    assert num_frames(loaded, inputs) == 6
    assert_same_inputs(inputs, processor.apply_chat_template(ask(str(clip)), **CHAT, num_frames=6))


def test_a_saved_processor_is_loaded_without_a_word_of_frames(tmp_path):
    """Files are tried when they are loaded, on frames that the caller did not give."""
    stock_model("qwen2_5_vl").save_pretrained(tmp_path)
    with_video_reader(tiny_processor("qwen2_5_vl")).save_pretrained(tmp_path)
    program = f"from cacovid_hf import auto\nauto.load_processor({str(tmp_path)!r})"
    assert "Decoded frames" not in run_fresh(program, tmp_path, with_transformers=True).stderr


def test_stock_checkpoints_stay_stock(family, tmp_path):
    stock = stock_processor(family)
    stock.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded.video_processor) is type(stock.video_processor)
    assert type(loaded.video_processor).__module__.startswith("transformers.")


def test_any_order_of_imports(processor, tmp_path):
    """Registration runs in the middle of transformers' own imports, even of the stock class that ours extends."""
    processor.save_pretrained(tmp_path)
    own = type(processor.video_processor)
    program = (
        f"import cacovid_hf\nfrom transformers import {own.__name__.removeprefix('CaCoVid')}, AutoProcessor\n"
        f"print(type(AutoProcessor.from_pretrained({str(tmp_path)!r}).video_processor).__name__)"
    )
    assert run_fresh(program, tmp_path).stdout.strip() == own.__name__


def test_settings_are_kept(family):
    stock = stock_processor(family, do_normalize=False, fps=2.0)
    before = stock.video_processor.to_dict()

    own = with_video_reader(stock)

    assert stock.video_processor.to_dict() == before
    kept = {
        name: value
        for name, value in before.items()
        if value is not None and name not in ("fps", "video_processor_type")
    }
    after = own.video_processor.to_dict()
    assert kept.items() <= after.items()
    assert (after["num_frames"], after["max_fps"]) == (32, 2.0)
    assert own.tokenizer is stock.tokenizer
    assert with_video_reader(own).video_processor.to_dict() == after


def test_decoded_frames_pass_as_in_stock(family, processor):
    frames = np.stack([numbered_picture(i) for i in range(40)])
    stock = stock_processor(family)
    for videos in ([frames], [torch.from_numpy(frames)], [list(frames)]):
        assert_same_inputs(
            processor(text=processor.video_token, videos=videos, return_tensors="pt"),
            stock(text=stock.video_token, videos=videos, return_tensors="pt"),
        )
    assert num_frames(processor, processor(text=processor.video_token, videos=[frames], return_tensors="pt")) == 40


def test_decoded_frames_are_sampled_on_request(processor):
    frames = np.stack([numbered_picture(i) for i in range(40)])
    inputs = processor(
        text=processor.video_token, videos=[frames], do_sample_frames=True, num_frames=10, return_tensors="pt"
    )
    assert num_frames(processor, inputs) == 10


def test_sampled_frames_are_not_sampled_twice(processor, clip):
    frames, metadata = read_video(clip)
    with pytest.raises(ValueError, match=r"sampled already \(32 of 320 frames\)"):
        processor(text=processor.video_token, videos=[frames], video_metadata=[metadata], do_sample_frames=True)


def test_several_videos(processor, clip, tmp_path):
    short = write_video(tmp_path / "short.mp4", 40, fps=10)
    messages = ask(str(clip))
    messages[0]["content"].insert(0, {"type": "video", "path": str(short)})

    batch = processor.video_processor([[str(short)], [str(clip)]], return_metadata=True, num_frames=4)
    assert [m.frames_indices for m in batch["video_metadata"]] == [[0, 13, 26, 39], [0, 106, 212, 319]]
    inputs = processor.apply_chat_template(messages, **CHAT, num_frames=4)
    alone = processor.apply_chat_template(ask(str(clip)), **CHAT, num_frames=4)
    per_video = (alone["input_ids"] == processor.video_token_id).sum()
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 2 * per_video


@pytest.fixture(scope="module")
def served(clip):
    """The clip's address on a web server of this machine."""
    handler = functools.partial(QuietHandler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a%20clip.mp4"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_paths_and_addresses_give_the_same(processor, clip, served, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    expected = processor.apply_chat_template(ask(str(clip)), **CHAT, num_frames=4)
    inside = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
    given = (("path", str(clip)), ("url", clip.as_uri()), ("video", str(clip)), ("url", served), ("url", inside))
    for key, address in given:
        assert_same_inputs(processor.apply_chat_template(ask(address, key), **CHAT, num_frames=4), expected)


def test_bad_videos_get_one_clear_error(processor, served, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 100)
    cases = [
        (str(tmp_path / "none.mp4"), FileNotFoundError, "none.mp4 does not exist: check the path"),
        ((tmp_path / "none.mp4").as_uri(), FileNotFoundError, "none.mp4 does not exist: check the path"),
        (str(text), ValueError, "text.mp4 is not a readable video"),
        (served.replace("clip", "lost"), ValueError, r"lost.mp4 cannot be fetched \(HTTP Error 404"),
        ("data:video/mp4;base64,not base 64", ValueError, r"'data:video/mp4;base64,not base 64'\.\.\. cannot be read"),
        ("data:video/mp4," + "x" * 10_000, ValueError, r"x{25}'\.\.\. cannot be read: it does not say ';base64,'"),
        ("data:video/mp4;base64,bm8gdmlkZW8=", ValueError, "is not a readable video"),
        (served.replace("clip", "my clip"), ValueError, r"my clip.mp4 cannot be fetched \(URL can't contain control"),
    ]
    for address, kind, message in cases:
        with pytest.raises(kind, match=message):
            processor.apply_chat_template(ask(address), **CHAT)
    with pytest.raises(ValueError, match="mixes video files with decoded frames"):
        processor.video_processor([np.stack([numbered_picture(1)] * 2), str(text)])
    with pytest.raises(ValueError, match="num_frames=0: give the largest number"):
        processor.apply_chat_template(ask(served), **CHAT, num_frames=0)


def test_other_families_are_refused(processor):
    class Other(LlavaOnevisionVideoProcessor):
        pass

    other = stock_processor("llava_onevision")
    other.video_processor = Other()
    with pytest.raises(ValueError, match="has a video processor of type Other, for which there is no file reader"):
        with_video_reader(other)
    of_images = LlavaProcessor(LlavaOnevisionImageProcessor(), other.tokenizer)
    with pytest.raises(ValueError, match="LlavaProcessor has no video processor, because its model takes images alone"):
        with_video_reader(of_images)


def test_through_the_pipeline(family, processor, clip):
    pipe = pipeline("image-text-to-text", model=stock_model(family), processor=processor)

    answer = pipe(text=ask(str(clip)), max_new_tokens=4, return_full_text=False, generate_kwargs={"do_sample": False})

    inputs = processor.apply_chat_template(ask(str(clip)), **CHAT)
    inputs = inputs.to(pipe.model.device)
    ids = pipe.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert answer[0]["generated_text"].strip() == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
