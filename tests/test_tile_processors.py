"""The processors of InternVL and SmolVLM with our reading of files: the stock prompt and pixels, and which tiles are frames."""

import numpy as np
import pytest
import torch
from helpers import small_training
from helpers.chats import CHAT
from helpers.media import write_video
from helpers.models import wrapped
from helpers.processors import tiny_processor
from helpers.published import PUBLISHED
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from cacovid_hf import with_video_reader
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.video.files import read_chosen_frames

pytestmark = pytest.mark.spread(1)
TILES = ("internvl", "smolvlm")
MARKS = {
    "internvl": {"<img>": 3, "</img>": 4, "<IMG_CONTEXT>": 110, "<video>": 111},
    "smolvlm": {"<fake_token_around_image>": 3, "<global-img>": 4, "<image>": 110, "<video>": 111},
}
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{{ '<video>' if c['type'] == 'video' else 'IMAGE' if c['type'] == 'image' else c['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def stock_processor(name, **video):
    """With a tokenizer that has a token for each character, the line break among them, and one for each mark."""
    marks = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **MARKS[name]}
    characters = ["<unk>", *map(chr, range(32, 127)), "\n"]
    free = [number for number in range(240) if number not in marks.values()]
    tokenizer = Tokenizer(models.WordLevel(marks | dict(zip(characters, free, strict=False)), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(list(marks))
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        extra_special_tokens={**named, "video_token": "<video>"} if name == "internvl" else {},
    )
    if name == "internvl":
        size = {"height": 56, "width": 56}
        template = TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>")
        reader = InternVLVideoProcessor(**{"size": size, **video})
        return InternVLProcessor(
            GotOcr2ImageProcessor(size=size), fast, reader, image_seq_length=4, chat_template=template
        )
    pytest.importorskip("num2words", reason="SmolVLM's processor writes the number of frames by num2words")
    size = {"longest_edge": 56}
    usual = dict(max_image_size=size, video_sampling={"fps": 1, "max_frames": 64, "video_size": size})
    images = SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size=size)
    template = TEMPLATE.replace("IMAGE", "<image>")
    reader = SmolVLMVideoProcessor(**{**usual, **video})
    return SmolVLMProcessor(images, fast, reader, image_seq_len=4, chat_template=template)


@pytest.fixture(params=TILES)
def name(request):
    return request.param


@pytest.fixture
def processor(name):
    return with_video_reader(stock_processor(name))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """45 and 20 pictures, five a second."""
    folder = tmp_path_factory.mktemp("clips")
    return [str(write_video(folder / f"{count}.mp4", count, fps=5, gop=10)) for count in (45, 20)]


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8))


def ask(*parts):
    kinds = [
        {"type": "video", "path": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": [*kinds, {"type": "text", "text": "What?"}]}]


def shown(processor, inputs):
    """A prompt's text, marks in brackets and repeated placeholders counted."""
    found = []
    for token in processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()):
        if found and found[-1][0] == token and token in ("<image>", "<IMG_CONTEXT>"):
            found[-1][1] += 1
        else:
            found.append([token, 1])
    return "".join(token if count == 1 else f"{count}{token}" for token, count in found)


def chosen(path, reader):
    with open(path, "rb") as file:
        return read_chosen_frames(file, lambda metadata: reader.sample_frames(metadata=metadata))


def test_a_path_gives_the_stock_prompt_and_pixels(name, processor, clips):
    """And two inputs more."""
    stock = stock_processor(name)
    frames, metadata = chosen(clips[1], processor.video_processor)
    text = stock.apply_chat_template(ask(clips[1]), add_generation_prompt=True)
    expected = stock(
        text=text, videos=[[frames]], video_metadata=[[metadata]], do_sample_frames=False, return_tensors="pt"
    )
    inputs = processor.apply_chat_template(ask(clips[1]), **CHAT)
    assert set(inputs) == {*expected, "frame_numbers", "mm_token_type_ids"}
    for key, value in expected.items():
        assert torch.equal(inputs[key], value), key
    assert inputs["frame_numbers"].flatten().tolist() == [0, 1, 2, 3]
    assert torch.equal(inputs["mm_token_type_ids"], 2 * (inputs["input_ids"] == 110).long())
    assert shown(processor, inputs) == {
        "internvl": "Frame1: <img>4<IMG_CONTEXT></img>\nFrame2: <img>4<IMG_CONTEXT></img>\nFrame3: <img>4<IMG_CONTEXT></img>\n"
        "Frame4: <img>4<IMG_CONTEXT></img>What?>",
        "smolvlm": "<unk>User: You are provided the following series of four frames from a 0:00:04 [H:MM:SS] video.\n"
        "\nFrame from 00:00:<fake_token_around_image><global-img>4<image><fake_token_around_image>"
        "\nFrame from 00:01:<fake_token_around_image><global-img>4<image><fake_token_around_image>"
        "\nFrame from 00:02:<fake_token_around_image><global-img>4<image><fake_token_around_image>"
        "\nFrame from 00:03:<fake_token_around_image><global-img>4<image><fake_token_around_image>\n\nWhat?<end_of_utterance>\nAssistant:",
    }[name].replace("<unk>User", "<|im_start|>User")


def test_words_around_its_frames(name, processor, clips):
    """From `Frame` to the mark in front, and the mark and the line break behind."""
    _, model = wrapped(name)
    inputs = processor.apply_chat_template(ask(clips[1]), **CHAT)
    layout = model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    (span,) = layout.videos
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    words = ["".join(tokens[place] for place in span.word_places[span.word_frames == frame]) for frame in range(4)]
    assert (
        words
        == {
            "internvl": [f"Frame{n}: <img></img>" + "\n" * (n < 4) for n in (1, 2, 3, 4)],
            "smolvlm": [
                f"Frame from 00:0{n}:<fake_token_around_image><global-img><fake_token_around_image>" + "\n" * (n < 3)
                for n in (0, 1, 2, 3)
            ],
        }[name]
    )


def test_images_beside_clips_of_different_lengths(name, processor, clips, picture):
    """What stock code fails on, or loses: each image and clip is what it is alone."""
    alone = [processor.apply_chat_template(ask(part), **CHAT) for part in (picture, *clips)]
    inputs = processor.apply_chat_template(ask(picture, *clips), **CHAT)
    tiles = [one["pixel_values"].flatten(0, -4) for one in alone]
    assert torch.equal(inputs["pixel_values"].flatten(0, -4), torch.cat(tiles))
    assert inputs["frame_numbers"].flatten().tolist() == [*[-1] * len(tiles[0]), *range(9), *range(4)]
    types = inputs["mm_token_type_ids"][inputs["input_ids"] == 110]
    assert types.tolist() == [1] * 4 * len(tiles[0]) + [2] * 4 * 13
    batch = processor.apply_chat_template(
        [ask(clips[1]), [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], ask(clips[0], picture)],
        **CHAT,
        processor_kwargs={"padding": True},
    )
    counts = [4, 0, 9 + len(tiles[0])]
    assert (batch["input_ids"] == 110).sum(1).tolist() == [4 * count for count in counts]
    if name == "smolvlm":
        assert [int((row != -2).sum()) for row in batch["frame_numbers"]] == counts
        is_padding = batch["frame_numbers"] == -2
        assert bool((batch["pixel_values"][is_padding] == 0).all())
        assert bool((batch["pixel_attention_mask"][~is_padding] == 1).all())
    stock = stock_processor(name)
    videos = [chosen(clip, processor.video_processor) for clip in clips]
    text = stock.apply_chat_template(ask(picture, *clips))
    settings = dict(videos=[[frames for frames, _ in videos]], video_metadata=[[one for _, one in videos]])
    try:
        lost = stock(text=text, images=[picture], **settings, do_sample_frames=False, return_tensors="pt")
    except (ValueError, AttributeError):
        lost = None  # clips of one length alone
    assert (lost is None) == (name == "internvl")
    assert lost is None or lost["pixel_values"].shape[:2] == (2, 9)  # the image's tiles are not among them


@pytest.mark.parametrize("seconds", [3.0, 60.0, 3600.0])
def test_where_published_settings_place_frames(name, seconds):
    stock = stock_processor(name, **PUBLISHED[name].video)
    reader = with_video_reader(stock).video_processor
    metadata = VideoMetadata(total_num_frames=int(seconds * 25), fps=25.0, duration=seconds)
    found = reader.sample_frames(metadata=metadata)
    if name == "internvl":  # the caller says how many: as for other families, in the middle of their parts
        count = min(32, int(seconds))
        assert len(found) == count
        assert np.array_equal(found, stock.video_processor.sample_frames(metadata=metadata, num_frames=count))
        assert found[0] == int(seconds * 25 / count / 2)
        return
    # A second is left out at either end of a long video.
    assert (found[0], found[-1]) == ((25, 3599 * 25) if seconds == 3600.0 else (0, int(seconds * 25) - 1))


def test_settings_of_a_call_and_of_the_processor(name, processor, clips, tmp_path):
    def frames(reader, **how):
        return len(reader.apply_chat_template(ask(clips[0]), **CHAT, **how)["frame_numbers"].flatten())

    assert frames(processor) == 9
    assert frames(processor, num_frames=4) == 4
    assert frames(processor, fps=2) == 18
    assert frames(processor, max_fps=2) == 18
    processor.video_processor.num_frames = 6
    assert frames(processor) == 6
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor)
    assert type(again.video_processor) is type(processor.video_processor)
    assert frames(again) == 6
    assert frames(with_video_reader(again)) == 6
    part = ask(clips[0])
    part[0]["content"][0] |= {"video_start": 3.0, "video_end": 6.0}
    assert len(again.apply_chat_template(part, **CHAT)["frame_numbers"].flatten()) == 3


def test_what_belongs_to_generate_is_refused(processor, clips):
    """Also where the stock processor puts in a chat template of its own."""
    with pytest.raises(Exception, match=r"retention_ratio is (an argument of generate|not an argument)"):
        processor.apply_chat_template(ask(clips[0]), **CHAT, retention_ratio=0.25)


def test_sessions_without_metadata(name, processor, clips):
    """InternVL numbers its frames; SmolVLM writes their times."""
    _, model = wrapped(name)
    inputs = processor.apply_chat_template(ask(clips[1]), **CHAT)
    session = model.session(**inputs, processor=processor, retention_ratio=0.25)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}]
    if name == "smolvlm":
        with pytest.raises(ValueError, match="The times of the videos' frames are not known"):
            session.prompt([chat])
        return
    prompt = session.prompt([chat])
    assert all(torch.equal(value, inputs[key]) for key, value in prompt.items())


def test_a_training_batch(name, processor, clips, tmp_path):
    """Samples of clips of two lengths: the collator's prompts as the trainer embeds them, each as it is alone; and a step moves the policy."""
    model, _, trainer = small_training.trainer(tmp_path, name, steps=2, samples=4)
    question = dict(problem="what", options=["A. red", "B. blue"], problem_type="multiple choice")
    samples = [{**question, "solution": "<answer>A</answer>", "path": path} for path in (*clips, clips[0])]
    collator = AnswerCollator(with_video_reader(tiny_processor(name)), allowed_roots=["/"])
    batch = collator(samples)
    assert (batch["skipped"], batch["places"]) == ([], [0, 2, 1])
    prompt = trainer._embed(batch["inputs"])
    assert [span.grid[0] for span in prompt.layout.videos] == [9, 9, 4]
    for row, path in enumerate((clips[0], clips[0], clips[1])):
        (alone,) = collator([{**samples[0], "path": path}])["inputs"]
        single, span = model.embed(**alone), prompt.layout.videos[row]
        expected = single.video_features(single.layout.videos[0])
        torch.testing.assert_close(prompt.video_features(span), expected, atol=1e-5, rtol=1e-5)
        assert len(prompt.layout.text_places[row]) == len(single.layout.text_places[0])
    before = [weight.clone() for weight in model.policy.parameters()]
    trainer.train()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True)]
    assert any(moved)
