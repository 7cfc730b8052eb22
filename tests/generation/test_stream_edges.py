"""A stream at its edges: what questions may set, pictures of other kinds, two threads at one moment, and numbers that few bits cannot hold."""

import json
import threading

import numpy as np
import pytest
import torch
from helpers.models import FIRST, stock_model
from helpers.processors import tiny_processor
from helpers.senders import send
from helpers.streams import QUESTION, STEP, held, pictures, same
from PIL import Image
from transformers import DynamicCache, GenerationConfig

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.generation.stream import saving
from cacovid_hf.generation.stream.groups import Groups, Rule
from cacovid_hf.generation.stream.intake import Intake
from cacovid_hf.generation.stream.keys import _mean_keys
from cacovid_hf.generation.stream.quantised import LARGEST, pack, unpack
from cacovid_hf.generation.stream.steps import Step

LAST_OF_TOWER = {
    "llava_onevision": "model.multi_modal_projector.linear_2.bias",
    "qwen2_5_vl": "model.visual.merger.mlp.2.bias",
}
MEMORIES = pytest.mark.parametrize("memory", ["features", "kv"])


# ---------------------------------------------------------------- questions


@MEMORIES
def test_what_the_stream_gives_itself_is_refused(streaming, memory):
    model, processor = streaming
    stream = model.stream(processor, memory=memory, tokens_per_frame=3)
    stream.feed(pictures(4))
    expected = stream.generate(QUESTION, **STEP)
    for name, value in (
        ("retention_ratio", 0.5),
        ("retention_ratio", 0),
        ("input_ids", torch.ones(1, 3, dtype=torch.long)),
        ("inputs_embeds", torch.ones(1, 3, 4)),
        ("attention_mask", torch.ones(1, 3)),
        ("position_ids", torch.ones(1, 3)),
        ("pixel_values_videos", torch.ones(1)),
        ("pixel_values", torch.ones(1)),
        ("encoded_videos", ()),
        ("past_key_values", DynamicCache()),
        ("return_dict_in_generate", True),
        ("generation_config", GenerationConfig(return_dict_in_generate=True)),
    ):
        with pytest.raises(ValueError, match=r"is not an argument of a stream|which a stream returns"):
            stream.ask(QUESTION, **{name: value})
        assert torch.equal(stream.generate(QUESTION, **{name: None}, **STEP), expected)
    assert torch.equal(stream.generate(QUESTION, return_dict_in_generate=False, **STEP), expected)


@pytest.mark.parametrize(
    "setting", [dict(cache_implementation="static"), dict(use_cache=False), dict(prefill_chunk_size=2)]
)
def test_a_cache_of_the_callers_does_not_go_with_a_memory_of_keys(streaming, setting):
    """Of features it is the stock loop's, and changes nothing."""
    model, processor = streaming
    stream = model.stream(processor, memory="kv", tokens_per_frame=3)
    stream.feed(pictures(4))
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* does not work with memory='kv'"):
        stream.ask(QUESTION, **setting)
    stream = model.stream(processor, tokens_per_frame=3)
    stream.feed(pictures(4))
    assert torch.equal(stream.generate(QUESTION, **setting, **STEP), stream.generate(QUESTION, **STEP))


@pytest.mark.parametrize(
    ("compressor", "error"),
    [
        ("fastv", "inside the language model"),
        ("framefusion", "inside the language model"),
        ("visionzip", "vision tower"),
    ],
)
def test_a_choice_that_features_cannot_serve(streaming, compressor, error):
    """A method that drops tokens later would read all of them."""
    model, processor = streaming
    with pytest.raises(ValueError, match=error):
        model.stream(processor, compressor=compressor)
    stream = model.stream(processor, tokens_per_frame=3)
    stream.feed(pictures(4))
    for num_tokens in (2, 10**6):
        with pytest.raises(ValueError, match=error):
            stream.ask(QUESTION, compressor=compressor, num_tokens=num_tokens)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_other_modes_are_their_colours(streaming, mode):
    model, processor = streaming
    shown = [Image.fromarray(picture).convert(mode) for picture in pictures(4)]
    one, two, three = (model.stream(processor, tokens_per_frame=3) for _ in range(3))
    one.feed(np.stack([np.asarray(picture.convert("RGB")) for picture in shown]))
    two.feed(shown)
    for picture in shown:
        three.feed(picture)
    assert same(held(one), held(two))
    assert same(held(one), held(three))


def test_another_size_after_a_reset(streaming):
    """What was known of the frames before goes with them, standing questions laid out for their size too."""
    model, processor = streaming
    settings = dict(tokens_per_frame=2, reducer="cacovid", standing=[QUESTION])
    stream, fresh = model.stream(processor, **settings), model.stream(processor, **settings)
    stream.feed(pictures(4))
    stream.reset()
    for one in (stream, fresh):
        one.feed(pictures(4, size=(96, 128)))
    assert same(held(stream), held(fresh))
    assert stream.ask(QUESTION, **STEP) == fresh.ask(QUESTION, **STEP)


@pytest.mark.parametrize(("memory", "value"), [("features", 1e6), ("features", float("nan")), ("kv", float("nan"))])
def test_a_frame_that_few_bits_cannot_hold(streaming, memory, value):
    """A tower that overflows is told, and nothing of the frame is stored. The language model brings large numbers back to size, but not NaN."""
    model, processor = streaming
    stream = model.stream(processor, memory=memory, bits=4, tokens_per_frame=3)
    stream.feed(pictures(4))
    before, frames = held(stream), stream.num_frames
    bias = dict(model.backbone.named_parameters())[LAST_OF_TOWER[model.backbone.config.model_type]]
    sound = bias.detach().clone()
    with torch.no_grad():
        try:
            bias[0] = value
            with pytest.raises(ValueError, match=r"cannot store (NaN|numbers over)"):
                stream.feed(pictures(model.family.frames_per_step(model.backbone.config)))
        finally:
            bias.copy_(sound)
    assert same(before, held(stream))
    assert stream.num_frames < frames + 2
    stream.feed(pictures(2))
    assert stream.num_frames > frames


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_largest_numbers_that_are_stored(bits):
    rows = torch.tensor([[-LARGEST, LARGEST, 0.0], [LARGEST, LARGEST, LARGEST], [-LARGEST, -LARGEST, -LARGEST]])
    packed = pack(rows, bits)
    found = unpack(packed, torch.float32)
    step = 64.0 if packed.step is None else packed.step.float()[:, None]  # of float16 there
    assert ((found - rows).abs() <= step / 2 * (1 + 1e-3)).all()
    for value, error in (
        (LARGEST + 1, f"over {LARGEST} in {bits} bits: use bits=32"),
        (float("inf"), "NaN or infinite numbers: load the model"),
        (float("nan"), "NaN or infinite numbers: load the model"),
    ):
        with pytest.raises(ValueError, match=error):
            pack(rows.index_fill(1, torch.tensor([0]), value), bits)
    assert torch.equal(unpack(pack(rows * 10, 32), torch.float32), rows * 10)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_largest_numbers_are_merged(bits):
    """Steps of few bits may end above what was stored, and what is merged is stored anew."""
    for dtype in (torch.float32, torch.bfloat16):
        model = CaCoVidForConditionalGeneration.from_backbone(stock_model(FIRST[0]).to(dtype))
        processor = with_video_reader(tiny_processor(FIRST[0]))
        stream = model.stream(processor, tokens_per_frame=3, bits=bits)
        stream.feed(pictures(1))
        memory = stream._memory
        if bits == 16 and dtype == torch.bfloat16:
            largest = 1e38  # kept as they are
        else:
            largest = float(torch.tensor(LARGEST).to(dtype).clamp(max=64_768 if dtype == torch.bfloat16 else LARGEST))
        for low in (-largest, largest / 3, largest):
            numbers = torch.linspace(low, largest, memory.width).repeat(3, 1).to(dtype).clamp(-largest, largest)
            groups = [memory.stored(Step(i, i, numbers, torch.arange(3), torch.ones(3)), []) for i in range(2)]
            for _ in range(3):
                groups[0] = memory._averaged(*groups)
            found = groups[0].features(torch.float32, memory.width)
            assert found.isfinite().all()
            assert ((found - numbers.float()).abs() <= largest * 2 / (2**bits - 1 if bits < 16 else 100)).all()


def test_room_is_counted_when_it_is_made():
    def failing(one, two):
        raise ValueError("cannot be merged")

    groups = Groups(2, Rule(lambda one, two: 0.0, failing))
    groups.add("a")
    groups.add("b")
    with pytest.raises(ValueError, match="cannot be merged"):
        groups.add("c")
    assert (groups.items, groups.losses, groups.made_room) == (["a", "b"], [0.0], 0)


def test_numbers_of_numpy(tmp_path):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(FIRST[0]))
    processor = with_video_reader(tiny_processor(FIRST[0]))
    stream = model.stream(
        processor,
        tokens_per_frame=np.int64(3),
        bits=np.int8(4),
        max_memory=np.int64(10**6),
        fps=np.float32(2),
        window=np.uint16(9),
        frames_per_window=np.int32(2),
    )
    stream.feed(pictures(3))
    expected = stream.ask(QUESTION, num_tokens=4, **STEP)
    assert stream.ask(QUESTION, num_tokens=np.int64(4), **STEP) == expected
    stream.save(tmp_path / "stream")
    again = model.load_stream(tmp_path / "stream", processor)
    assert again.settings == stream.settings
    ratio = model.stream(processor, retention_ratio=np.float32(0.5)).settings
    assert json.dumps(ratio.as_dict())
    for wrong in (np.bool_(True), True, np.float64(3), "3", 0):
        with pytest.raises(ValueError, match="give a whole number"):
            stream.ask(QUESTION, num_tokens=wrong, **STEP)
        with pytest.raises(ValueError, match="give a whole number"):
            model.stream(processor, window=wrong)
    with pytest.raises(ValueError, match="fps="):
        model.stream(processor, fps=10**400)


# ---------------------------------------------------------------- threads


@MEMORIES
def test_a_step_and_what_is_known_of_it_change_at_once(streaming, memory, tmp_path, monkeypatch):
    """Saved or asked in the very moment in which a step is stored, a stream does not have it twice."""
    model, processor = streaming
    stream = model.stream(processor, memory=memory, tokens_per_frame=3)
    per_step = model.family.frames_per_step(model.backbone.config)
    add, threads, seen = Groups.add, [], []

    def look():
        _, groups = stream._snapshot()
        seen.append([int(group.frames[0]) for group in groups])

    def noted(self, group):
        add(self, group)
        if self is stream_groups():
            number = len(threads)
            for target, args in ((stream.save, (tmp_path / str(number),)), (look, ())):
                threads.append(threading.Thread(target=target, args=args))
                threads[-1].start()
                threads[-1].join(0.2)

    def stream_groups():
        return None if stream._memory is None else stream._memory.groups

    stream.feed(pictures(per_step))
    monkeypatch.setattr(Groups, "add", noted)
    stream.feed(pictures(3 * per_step, seed=1))
    for thread in threads:
        thread.join(30)
    monkeypatch.undo()
    assert len(seen) == 3
    for numbers in seen:
        assert len(set(numbers)) == len(numbers)
    for path in tmp_path.iterdir():
        described, tensors = saving.read(path)
        numbers = tensors["groups.frames"][:, 0].tolist()
        assert numbers == list(range(described["before"]["num_steps"]))


def test_standing_questions_of_two_sizes_at_one_moment(streaming):
    """A question may reach the intake with the frame of before a reset, just when a frame of another size has come."""
    model, processor = streaming
    settings = dict(tokens_per_frame=2, reducer="cacovid", standing=[QUESTION])
    stream = model.stream(processor, **settings)
    waiting, worths = [], {}

    class Switched(Intake):
        """Lets the other thread run in the very moment in which this one has laid out its questions."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "_asked" and waiting:
                size = waiting.pop()
                worths[size] = self._contribution(*of_size[size])

    def encoded(size):
        shown = pictures(stream._intake.per_step, size=size)
        features, _, frame = stream._intake._encoded(shown, None)
        return features, frame

    of_size = {size: encoded(size) for size in ((48, 64), (96, 128))}
    expected = {}
    for size in of_size:
        stream._intake._asked = None
        expected[size] = stream._intake._contribution(*of_size[size])
    stream._intake.__class__ = Switched
    stream._intake._asked = None
    waiting.append((96, 128))
    worths[48, 64] = stream._intake._contribution(*of_size[48, 64])
    assert set(worths) == set(of_size)
    for size, worth in worths.items():
        assert torch.equal(worth, expected[size])


# ---------------------------------------------------------------- numbers that float16 does not have


def test_mean_keys_that_float16_cannot_hold():
    """Retrieval compares directions, which stay."""
    keys = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    plain = _mean_keys(keys)
    assert plain.dtype == torch.float16
    assert torch.equal(plain, keys.flatten(1, 2).mean(-1).half())
    for times in (1e5, 1e30):
        found = _mean_keys(keys * times).float()
        assert found.isfinite().all()
        like = torch.nn.functional.cosine_similarity(found, plain.float(), dim=-1)
        assert (like > 1 - 1e-5).all()


def test_a_worth_that_float16_cannot_hold(streaming, tmp_path):
    model, processor = streaming
    stream = model.stream(processor, tokens_per_frame=3, when_full="contribution")
    stream.feed(pictures(2))
    memory = stream._memory
    like = memory.groups.items[0].features(torch.float32, memory.width)
    group = memory.stored(Step(9, 9.0, like, torch.arange(3), torch.tensor([1e9, -1e9, 1.0])), [])
    assert group.worth.tolist() == [LARGEST // 32 * 32, -(LARGEST // 32 * 32), 1.0]
    assert np.isfinite(memory._dropped(group, group))


@pytest.mark.parametrize("memory", ["features", "kv"])
def test_standing_scores_that_are_not_numbers(streaming, memory):
    model, processor = streaming
    stream = model.stream(processor, memory=memory, tokens_per_frame=10**6, reducer="cacovid", standing=[QUESTION])
    sound = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with torch.no_grad():
        try:
            for weight in model.policy.parameters():
                weight.fill_(float("nan"))
            with pytest.raises(ValueError, match="scores hold NaN"):
                stream.feed(pictures(2))
        finally:
            model.policy.load_state_dict(sound)
    assert stream.num_groups == 0


# ---------------------------------------------------------------- what it is fed, and what it takes


def test_a_live_address_is_fed_until_it_ends(streaming, tmp_path):
    model, processor = streaming
    send(str(tmp_path / "live.m3u8"), 40, "hls", {"hls_time": "1", "hls_list_size": "0"})
    stream = model.stream(processor, tokens_per_frame=3)
    assert stream.feed(str(tmp_path / "live.m3u8")) == 4
    assert stream.num_frames == 4


def test_prompts_of_standing_questions_count_beside_the_memory(streaming):
    model, processor = streaming
    sizes = []
    for count in (1, 2):
        stream = model.stream(processor, tokens_per_frame=3, reducer="cacovid", standing=[QUESTION] * count)
        stream.feed(pictures(4))
        sizes.append(stream.state_bytes())
    without = model.stream(processor, tokens_per_frame=3)
    without.feed(pictures(4))
    assert sizes[1] - sizes[0] == sizes[0] - without.state_bytes() > 0


def test_several_questions_at_once_are_refused(streaming):
    model, processor = streaming
    stream = model.stream(processor, tokens_per_frame=3)
    stream.feed(pictures(4))
    with pytest.raises(ValueError, match="The question is a list: give one text"):
        stream.ask([QUESTION, QUESTION])
