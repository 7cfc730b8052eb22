"""Saved streams: files that are damaged, a model of another dtype, another device, another processor."""

import json
import re

import pytest
import torch
from helpers.models import FIRST, stock_model
from helpers.processors import tiny_processor
from helpers.streams import QUESTION, STEP, held, pictures, same
from safetensors.torch import save_file

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.generation.stream import saving

MEMORIES = pytest.mark.parametrize("memory", ["features", "kv"])


def saved_small(model, processor, memory, folder):
    """A small stream, the file with it, and what the file says."""
    stream = model.stream(processor, memory=memory, tokens_per_frame=3, bits=4)
    stream.feed(pictures(7))
    path = folder / "stream"
    stream.save(path)
    return stream, path, *saving.read(path)


@MEMORIES
def test_a_damaged_file_is_one_error(streaming, memory, tmp_path):
    model, processor = streaming
    stream, path, described, tensors = saved_small(model, processor, memory, tmp_path)

    def refused(described, tensors):
        saving.write(path, described, tensors)
        with pytest.raises(
            ValueError, match=f"{re.escape(str(path))} is damaged|{re.escape(str(path))} cannot be loaded"
        ):
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
        ("before", dict(size=None)),
        ("before", dict(size=[48])),
        ("before", dict(size=[48, 64, 3])),
        ("before", dict(size=[0, 64])),
        ("before", dict(size=[48, -64])),
        ("before", dict(size=[48.0, 64.0])),
        ("before", dict(size=[2**31 - 1, 2**31 - 1])),
        ("before", dict(seconds="now")),
        ("before", dict(seconds=None)),
        ("before", dict(seconds=float("inf"))),
        ("before", dict(seconds=99.0)),
        ("before", dict(last=10**400)),
        ("before", dict(seconds=-(10**400))),
        ("before", dict(resized=8)),
        ("before", dict(resized=-1)),
        ("before", dict(resized=True)),
        ("before", dict(colour=1)),
        ("settings", dict(device="abacus")),
        ("settings", dict(fps="often")),
    ):
        refused({**described, where: {**described[where], **change}}, tensors)
    for where, value in (
        ("settings", []),
        ("before", []),
        ("frame", None),
        ("frame", [99, 99]),
        ("frame", [1]),
        ("frame", [1, 1, 1]),
        ("frame", "ab"),
        ("frame", [0, 0]),
        ("frame", {"height": 1}),
        ("made_room", -1),
        ("made_room", "often"),
    ):
        refused({**described, where: value}, tensors)
    for name, tensor in tensors.items():
        if name != "waiting.0":
            refused(described, {key: value for key, value in tensors.items() if key != name})
        if name.startswith("groups."):
            refused(described, {**tensors, name: tensor[:-1]})
            refused(described, {**tensors, name: tensor.flatten()})
        if name in ("before", "frame.trailing"):
            for other in (tensor[..., :-1], tensor[None], torch.cat([tensor, torch.ones(1, tensor.shape[1])])):
                refused(described, {**tensors, name: other})
            refused(described, {**tensors, name: tensor.int()})
        if name.startswith("frame.pixels."):
            refused(described, {**tensors, name: tensor + 1})
            refused(described, {**tensors, name: tensor[..., :-1]})
        if name == "groups.seconds":
            refused(described, {**tensors, name: tensor.flip(0)})
            refused(described, {**tensors, name: tensor + 100})
        if tensor.is_floating_point() and tensor.numel():
            refused(described, {**tensors, name: tensor * float("nan")})
    refused(described, {**tensors, "frame.pixels.more": torch.ones(1)})
    if "waiting.0" in tensors:
        refused(described, {**tensors, "waiting.0": tensors["waiting.0"][:-1]})
        refused(described, {**tensors, "waiting.0": tensors["waiting.0"].float()})
    # A whole step that waits, and would wait on.
    more = {f"waiting.{i}": torch.from_numpy(picture) for i, picture in enumerate(pictures(2))}
    waiting = sum(name.startswith("waiting.") for name in tensors)
    counted = {**described["before"], "num_frames": described["before"]["num_frames"] + 2 - waiting}
    refused({**described, "before": counted}, {**tensors, **more})
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


ODD_VALUES = (
    *(None, True, "x", -1, 0, 1, 1.5, 99, 10**18, float("nan"), 1e300),
    *([], {}, [1], ["a"], "cpu", "kv"),
)


def odd_tensors(tensor):
    """The same numbers in other shapes and types, fewer of them, more, and the opposite."""
    yield from (tensor.flatten(), tensor[:0], tensor[None], torch.zeros(()))
    yield from (tensor[..., :-1], torch.cat([tensor, tensor]), -tensor)
    yield from (tensor.to(dtype) for dtype in (torch.float64, torch.float16, torch.int64, torch.bool))
    if tensor.is_floating_point():
        yield tensor.to(torch.float8_e4m3fn)


@pytest.mark.slow
@MEMORIES
def test_any_damage_is_one_error_or_none(streaming, memory, tmp_path):
    """What a file says is refused by a sentence with its path, or the stream can be asked, fed and saved."""
    model, processor = streaming
    _, path, described, tensors = saved_small(model, processor, memory, tmp_path)
    damaged = []
    for name, value in described.items():
        damaged += [({**described, name: odd}, tensors) for odd in ODD_VALUES]
        for inner in value if isinstance(value, dict) else ():
            damaged += [({**described, name: {**value, inner: odd}}, tensors) for odd in ODD_VALUES]
    for name, tensor in tensors.items():
        damaged += [(described, {**tensors, name: odd}) for odd in odd_tensors(tensor)]
    refused = []
    for said, held_tensors in damaged:
        saving.write(path, said, held_tensors)
        try:
            again = model.load_stream(path, processor)
        except ValueError as error:
            refused.append(str(error))
            continue
        assert isinstance(again.ask(QUESTION, **STEP), str)
        again.feed(pictures(3))
        again.save(tmp_path / "again")
    assert all(str(path) in error for error in refused)
    assert len(damaged) > len(refused) > 300


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


def test_values_that_another_dtype_cannot_hold_are_not_loaded():
    """Of a stream in bfloat16, say, in a model whose memory is float16."""
    parts = {"frames": torch.zeros(1, 1, dtype=torch.int32), "places": torch.zeros(1, 1, dtype=torch.int32)}
    parts["features"] = torch.full((1, 1, 4), 7e4, dtype=torch.bfloat16)
    like = {name: part[0] for name, part in parts.items()} | {"features": torch.zeros(1, 4, dtype=torch.float16)}
    with pytest.raises(ValueError, match="values that this model's memory cannot hold"):
        saving.groups_of(parts, like, num_steps=1, size=1)
    sound = parts | {"features": parts["features"] / 2}
    assert saving.groups_of(sound, like, num_steps=1, size=1)[0]["features"].dtype == torch.float16


@MEMORIES
def test_a_saved_stream_goes_on_elsewhere(streaming, memory, tmp_path):
    """Saved where there was a GPU, it is loaded where there is none."""
    model, processor = streaming
    stream = model.stream(processor, memory=memory, tokens_per_frame=3)
    stream.feed(pictures(4))
    stream.save(tmp_path / "stream")
    described, tensors = saving.read(tmp_path / "stream")
    described["settings"]["device"] = "cuda:99"
    saving.write(tmp_path / "stream", described, tensors)
    with pytest.raises(ValueError, match=r"device='cuda:99' cannot hold a stream's memory here.*device='cpu'"):
        model.load_stream(tmp_path / "stream", processor)
    again = model.load_stream(tmp_path / "stream", processor, device="cpu")
    assert again.settings.device == "cpu"
    assert again.ask(QUESTION, **STEP) == stream.ask(QUESTION, **STEP)
    for one in (stream, again):
        one.feed(pictures(4, seed=1))
    assert same(held(stream), held(again))
    for device in ("abacus", "meta", 99, "cuda:99", object()):
        with pytest.raises(ValueError, match="cannot hold a stream's memory here"):
            model.load_stream(tmp_path / "stream", processor, device=device)
        with pytest.raises(ValueError, match="cannot hold a stream's memory here"):
            model.stream(processor, device=device)


def test_another_processor_is_told(tmp_path):
    """One that lays frames out otherwise would give the next frame another grid than the memory has."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("qwen2_5_vl"))
    processor = with_video_reader(tiny_processor("qwen2_5_vl"))
    stream = model.stream(processor, tokens_per_frame=3)
    stream.feed(pictures(2))
    stream.save(tmp_path / "stream")
    other = with_video_reader(tiny_processor("qwen2_5_vl"))
    other.video_processor.size = {"shortest_edge": 4 * 3136, "longest_edge": 4 * 112896}
    with pytest.raises(ValueError, match=r"stream cannot be loaded\. Its frames do not have the grid"):
        model.load_stream(tmp_path / "stream", other)


@pytest.fixture
def saved(tmp_path):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(FIRST[0]))
    processor = with_video_reader(tiny_processor(FIRST[0]))
    stream = model.stream(processor, tokens_per_frame=3, bits=4)
    stream.feed(pictures(4))
    stream.save(tmp_path / "stream")
    return tmp_path / "stream", stream, lambda: model.load_stream(tmp_path / "stream", processor)


@pytest.mark.parametrize("name", ["groups.codes", "groups.worth", "before"])
def test_one_changed_byte_is_damage(saved, name):
    """Among numbers that may all be so, only the checksum tells."""
    path, _, load = saved
    whole = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(whole[:8], "little")
    whole[begin + json.loads(whole[8:begin])[name]["data_offsets"][0]] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged \(its checksum is another\)"):
        load()


def test_what_a_file_says_is_checked_too(saved):
    path, _, load = saved
    path.write_bytes(path.read_bytes().replace(b'\\"made_room\\": 0', b'\\"made_room\\": 9'))
    with pytest.raises(ValueError, match="its checksum is another"):
        load()


def test_a_file_without_a_checksum_is_loaded(saved):
    """As files of the first format are."""
    path, stream, load = saved
    described, tensors = saving.read(path)
    save_file(tensors, path, metadata={"format": "cacovid stream 1", "stream": json.dumps(described)})
    assert load().ask(QUESTION, **STEP) == stream.ask(QUESTION, **STEP)
    without = {"format": saving.FORMAT, "stream": json.dumps(described)}
    other = {"format": "cacovid stream 1", "stream": json.dumps(described), "sha256": "0"}
    for metadata in (without, other):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ValueError, match="its checksum is another"):
            load()


@pytest.mark.parametrize("said", ["[" * 100_000, '{"made_room": ' + "9" * 5000 + "}", "{", "9" * 5000])
def test_json_that_cannot_be_read_is_named(saved, said):
    path, _, load = saved
    save_file(saving.read(path)[1], path, metadata={"format": saving.FORMAT, "stream": said})
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not a saved stream"):
        load()


def test_a_folder_is_told(saved):
    path, _, load = saved
    path.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load()
    path.mkdir()
    with pytest.raises(ValueError, match="is a folder: give the file"):
        load()
