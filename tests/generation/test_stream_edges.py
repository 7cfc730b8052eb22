"""A stream at its edges: what questions may set, pictures of other kinds, saved files that are damaged, and two threads at one moment."""

import threading

import numpy as np
import pytest
import torch
from helpers.models import FIRST, stock_model
from helpers.processors import tiny_processor
from helpers.streams import QUESTION, STEP, held, pictures, same
from PIL import Image
from transformers import DynamicCache, GenerationConfig

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.generation.stream import saving
from cacovid_hf.generation.stream.groups import Groups
from cacovid_hf.generation.stream.quantised import LARGEST, pack, unpack

LAST_OF_TOWER = {
    "llava_onevision": "model.multi_modal_projector.linear_2.bias",
    "qwen2_5_vl": "model.visual.merger.mlp.2.bias",
}
MEMORIES = pytest.mark.parametrize("memory", ["features", "kv"])


@pytest.fixture(params=FIRST)
def case(request):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(request.param))
    return model, with_video_reader(tiny_processor(request.param))


# ---------------------------------------------------------------- questions


@MEMORIES
def test_what_the_stream_gives_itself_is_refused(case, memory):
    model, processor = case
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
def test_a_cache_of_the_callers_does_not_go_with_a_memory_of_keys(case, setting):
    """Of features it is the stock loop's, and changes nothing."""
    model, processor = case
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
def test_a_choice_that_features_cannot_serve(case, compressor, error):
    """A method that drops tokens later would read all of them."""
    model, processor = case
    with pytest.raises(ValueError, match=error):
        model.stream(processor, compressor=compressor)
    stream = model.stream(processor, tokens_per_frame=3)
    stream.feed(pictures(4))
    for num_tokens in (2, 10**6):
        with pytest.raises(ValueError, match=error):
            stream.ask(QUESTION, compressor=compressor, num_tokens=num_tokens)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_other_modes_are_their_colours(case, mode):
    model, processor = case
    shown = [Image.fromarray(picture).convert(mode) for picture in pictures(4)]
    one, two, three = (model.stream(processor, tokens_per_frame=3) for _ in range(3))
    one.feed(np.stack([np.asarray(picture.convert("RGB")) for picture in shown]))
    two.feed(shown)
    for picture in shown:
        three.feed(picture)
    assert same(held(one), held(two))
    assert same(held(one), held(three))


def test_another_size_after_a_reset(case):
    """What was known of the frames before goes with them, standing questions laid out for their size too."""
    model, processor = case
    settings = dict(tokens_per_frame=2, reducer="cacovid", standing=[QUESTION])
    stream, fresh = model.stream(processor, **settings), model.stream(processor, **settings)
    stream.feed(pictures(4))
    stream.reset()
    for one in (stream, fresh):
        one.feed(pictures(4, size=(96, 128)))
    assert same(held(stream), held(fresh))
    assert stream.ask(QUESTION, **STEP) == fresh.ask(QUESTION, **STEP)


@pytest.mark.parametrize(("memory", "value"), [("features", 1e6), ("features", float("nan")), ("kv", float("nan"))])
def test_a_frame_that_few_bits_cannot_hold(case, memory, value):
    """A tower that overflows is told, and nothing of the frame is stored. The language model brings large numbers back to size, but not NaN."""
    model, processor = case
    stream = model.stream(processor, memory=memory, bits=4, tokens_per_frame=3)
    stream.feed(pictures(4))
    before, frames = held(stream), stream.num_frames
    bias = dict(model.backbone.named_parameters())[LAST_OF_TOWER[model.backbone.config.model_type]]
    sound = bias.detach().clone()
    with torch.no_grad():
        try:
            bias[0] = value
            with pytest.raises(ValueError, match="cannot store NaN"):
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
    for value in (LARGEST + 1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"in {bits} bits"):
            pack(rows.index_fill(1, torch.tensor([0]), value), bits)
    assert torch.equal(unpack(pack(rows * 10, 32), torch.float32), rows * 10)


# ---------------------------------------------------------------- saved files


@MEMORIES
def test_a_damaged_file_is_one_error(case, memory, tmp_path):
    model, processor = case
    stream = model.stream(processor, memory=memory, tokens_per_frame=3, bits=4)
    stream.feed(pictures(7))
    path = tmp_path / "stream"
    stream.save(path)
    described, tensors = saving.read(path)

    def refused(described, tensors):
        saving.write(path, described, tensors)
        with pytest.raises(ValueError, match=r"damaged|not a saved stream|max_memory=10 holds no frame"):
            model.load_stream(path, processor)

    for name in described:
        refused({key: value for key, value in described.items() if key != name}, tensors)
    for where, change in (
        ("settings", dict(colour=1)),
        ("settings", dict(tokens_per_frame=2)),
        ("settings", dict(bits=8)),
        ("settings", dict(bits=16)),
        ("settings", dict(max_memory=10)),
        ("settings", dict(memory="kv" if memory == "features" else "features", when_full=None)),
        ("before", dict(num_steps=0)),
        ("before", dict(num_frames="seven")),
        ("before", dict(last=None)),
        ("before", dict(last=float("nan"))),
        ("before", dict(size="ab")),
    ):
        refused({**described, where: {**described[where], **change}}, tensors)
    for where, value in (
        ("settings", []),
        ("before", []),
        ("frame", None),
        ("frame", [99, 99]),
        ("made_room", "often"),
    ):
        refused({**described, where: value}, tensors)
    for name, tensor in tensors.items():
        if name != "waiting.0":
            refused(described, {key: value for key, value in tensors.items() if key != name})
        if name.startswith("groups."):
            refused(described, {**tensors, name: tensor[:-1]})
            refused(described, {**tensors, name: tensor.flatten()})
        if tensor.is_floating_point() and tensor.numel():
            refused(described, {**tensors, name: tensor * float("nan")})
    for name in ("places", "frames"):
        for moved in (tensors[f"groups.{name}"] + 1000, tensors[f"groups.{name}"] - 1000):
            refused(described, {**tensors, f"groups.{name}": moved})
        refused(described, {**tensors, f"groups.{name}": tensors[f"groups.{name}"].flip(0, 1)})
    saving.write(path, described, tensors)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a saved stream"):
            model.load_stream(path, processor)
    saving.write(path, described, tensors)
    assert model.load_stream(path, processor).ask(QUESTION, **STEP) == stream.ask(QUESTION, **STEP)


@MEMORIES
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_a_saved_stream_stays_within_the_bound_of_another_dtype(memory, bits, tmp_path):
    """Wider numbers mean fewer groups, and room is made by the rule."""
    family = FIRST[0]
    processor = with_video_reader(tiny_processor(family))
    narrow = CaCoVidForConditionalGeneration.from_backbone(stock_model(family).bfloat16())
    wide = CaCoVidForConditionalGeneration.from_backbone(stock_model(family))
    for first, second in ((narrow, wide), (wide, narrow)):
        probe = first.stream(processor, memory=memory, tokens_per_frame=3, bits=bits)
        probe.feed(pictures(6))
        bound = probe.memory_bytes()
        stream = first.stream(processor, memory=memory, tokens_per_frame=3, bits=bits, max_memory=bound)
        stream.feed(pictures(6))
        assert stream.num_groups == 6
        stream.save(tmp_path / "stream")
        again = second.load_stream(tmp_path / "stream", processor)
        for picture in pictures(5, seed=1):
            assert again.memory_bytes() <= bound
            again.feed(picture)
        assert again.memory_bytes() <= bound
        assert isinstance(again.ask(QUESTION, **STEP), str)


# ---------------------------------------------------------------- threads


@MEMORIES
def test_a_step_and_what_is_known_of_it_change_at_once(case, memory, tmp_path, monkeypatch):
    """Saved or asked in the very moment in which a step is stored, a stream does not have it twice."""
    model, processor = case
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


def test_values_that_another_dtype_cannot_hold_are_not_loaded():
    """Of a stream in bfloat16, say, in a model whose memory is float16."""
    parts = {"frames": torch.zeros(1, 1, dtype=torch.int32), "places": torch.zeros(1, 1, dtype=torch.int32)}
    parts["features"] = torch.full((1, 1, 4), 7e4, dtype=torch.bfloat16)
    like = {name: part[0] for name, part in parts.items()} | {"features": torch.zeros(1, 4, dtype=torch.float16)}
    with pytest.raises(ValueError, match="values that this model's memory cannot hold"):
        saving.groups_of(parts, like, num_steps=1, size=1)
    sound = parts | {"features": parts["features"] / 2}
    assert saving.groups_of(sound, like, num_steps=1, size=1)[0]["features"].dtype == torch.float16
