"""A stream: what a question answers is what one prompt of the same tokens answers, and memory never grows past its bound."""

import datetime
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media import write_video
from helpers.models import FAMILIES, FIRST, masked_inputs, stock_model
from helpers.processors import tiny_processor
from helpers.streams import ALL, QUESTION, STEP, held, never_repeats, pictures, same, whole_prompt
from PIL import Image

from cacovid_hf import CaCoVidForConditionalGeneration, VideoStream, with_video_reader
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.compressors import Marc, Uniform
from cacovid_hf.generation.stream.prompts import words_of
from cacovid_hf.generation.stream.settings import RULES

MEMORIES = pytest.mark.parametrize("memory", ["features", "kv"])


@pytest.fixture(params=FIRST)
def case(request):
    stock = stock_model(request.param)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock), with_video_reader(tiny_processor(request.param))


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_everything_kept_is_one_forward_over_the_whole_prompt(case, frames):
    stock, model, processor = case
    shown = pictures(frames)
    stream = model.stream(processor, **ALL)
    assert stream.feed(shown) == stream.num_frames == frames
    inputs = whole_prompt(processor, shown)
    words = words_of(model, processor, QUESTION)
    memory, groups = stream._snapshot()
    prompt, features = memory.choose(words, groups, 10**6, None)
    assert torch.equal(prompt.inputs["input_ids"], inputs["input_ids"])
    whole = model.embed(**inputs)
    positions = whole.position_ids
    assert torch.equal(prompt.inputs["position_ids"], positions)
    is_video = whole.layout.videos[0].positions
    torch.testing.assert_close(features, whole.inputs_embeds[0, is_video], atol=1e-5, rtol=1e-5)
    expected = stock.generate(**inputs, **STEP)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(stream.generate(QUESTION, num_tokens=10**6, **STEP), expected)
    assert stream.ask(QUESTION, num_tokens=10**6, **STEP) == processor.decode(expected[0], skip_special_tokens=True)


@pytest.mark.parametrize("reducer", ["divprune", "vidcom2", "gleanvid", "marc", "simplecluster", "streamingtom"])
def test_any_blind_method_reduces_frames(case, reducer):
    _, model, processor = case
    stream = model.stream(processor, tokens_per_frame=2, reducer=reducer)
    stream.feed(pictures(4))
    assert [len(group.places) for group in stream._memory.groups.items] == [2] * len(stream._memory.groups.items)
    assert stream.ask(QUESTION, **STEP)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_kept_tokens_have_their_places_in_one_prompt(case, tokens):
    """The oracle: the stock model on the whole prompt, with the tokens that were not stored masked out."""
    stock, model, processor = case
    shown = pictures(6)
    stream = model.stream(processor, tokens_per_frame=tokens, bits=32, reducer="uniform")
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    (span,) = model.embed(**inputs).layout.videos
    keep = torch.zeros(span.num_frames, span.tokens_per_frame, dtype=torch.bool)
    for group in stream._memory.groups.items:
        keep[group.frames.long(), group.places.long()] = True
    assert keep.sum() == tokens * span.num_frames
    places = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    places[span.positions[~keep.flatten()]] = False
    masked = masked_inputs(stock, inputs, [places.nonzero()[:, 0]])
    expected = stock.generate(**masked, **STEP)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(stream.generate(QUESTION, **STEP), expected)


def test_the_policy_chooses_as_in_one_prompt(case):
    """With all groups in one window, what a question keeps is what `compress` keeps."""
    _, model, processor = case
    shown = pictures(8)
    stream = model.stream(processor, **ALL)
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    compressed = model.compress(**inputs, retention_ratio=0.5)
    memory, groups = stream._snapshot()
    words = words_of(model, processor, QUESTION)
    total = compressed.videos[0].keep.numel()
    frames, places = stream_tokens(memory, words, groups, total // 2)
    kept = compressed.videos[0].keep.nonzero()
    assert torch.equal(torch.stack([frames, places], 1), kept)
    # Blind methods, which compare tokens, see the whole memory.
    blind = model.compress(**inputs, retention_ratio=0.5, compressor="uniform").videos[0].keep
    frames, places = stream_tokens(memory, words, groups, total // 2, Uniform())
    assert torch.equal(torch.stack([frames, places], 1), blind.nonzero())


def stream_tokens(memory, words, groups, count, compressor=None):
    """Frame and place of the tokens that a question keeps, found by their features."""
    _, features = memory.choose(words, groups, count, compressor)
    every = torch.cat([group.features(features.dtype, memory.width) for group in groups])
    rows = torch.stack([(every == token).all(1).nonzero()[0, 0] for token in features])
    frames, places = (torch.cat([getattr(g, name) for g in groups]).long() for name in ("frames", "places"))
    return frames[rows], places[rows]


@pytest.mark.parametrize("window", [1, 3])
def test_scores_in_windows_keep_the_budget_and_order(case, window):
    _, model, processor = case
    stream = model.stream(processor, frames_per_window=window, **ALL)
    stream.feed(pictures(8))
    memory, groups = stream._snapshot()
    words = words_of(model, processor, QUESTION)
    prompt, features = memory.choose(words, groups, 7, None)
    assert prompt.num_tokens == len(features) == 7
    assert never_repeats(prompt.inputs["position_ids"])
    assert prompt.inputs["position_ids"].max() < 100


@pytest.mark.parametrize(("memory", "rule"), [(memory, rule) for memory, rules in RULES.items() for rule in rules])
@pytest.mark.parametrize("bits", [4, 16, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 8, 32))])
def test_memory_stays_within_its_bound(case, memory, rule, bits):
    _, model, processor = case
    probe = model.stream(processor, memory=memory, tokens_per_frame=3, bits=bits)
    sizes = []
    for _ in range(2):
        probe.feed(pictures(model.family.frames_per_step(model.backbone.config)))
        sizes.append(probe.memory_bytes())
    one, words = sizes[1] - sizes[0], 2 * sizes[0] - sizes[1]
    assert one == probe._memory.group_bytes
    most = words + 5 * one + one // 2
    stream = model.stream(processor, memory=memory, tokens_per_frame=3, bits=bits, when_full=rule, max_memory=most)
    sizes, states = [], []
    for picture in pictures(30):
        stream.feed(picture)
        sizes.append(stream.memory_bytes())
        states.append(stream.state_bytes())
    assert len(set(states[2:])) <= 2  # a step, with a frame that waits or without
    assert max(sizes) == sizes[-1] == words + 5 * one <= most
    assert stream.num_groups == 5
    assert stream.num_frames == 30
    times = [(first, last) for first, last, _ in stream.held()]
    assert times == sorted(times)
    assert times[-1][1] >= 28
    for group in stream._memory.groups.items if memory == "features" else ():
        order = group.frames.long() * 1000 + group.places.long()
        assert (order.diff() > 0).all()
    assert isinstance(stream.ask(QUESTION, **STEP), str)


def test_rules_hold_different_things(case):
    """Or the test above could not fail."""
    _, model, processor = case
    found = set()
    for rule in ("alike", "oldest", "contribution"):
        stream = model.stream(processor, tokens_per_frame=2, when_full=rule, max_memory=1800)
        stream.feed(pictures(40))
        found.add(str([group.frames.tolist() for group in stream._memory.groups.items]))
    assert len(found) == 3


def test_alike_frames_become_one(case):
    """Of two scenes, each is one group however long it was: the mean of frames is the frame."""
    stock, model, processor = case
    per_step = model.family.frames_per_step(stock.config)
    one, two = pictures(2)
    probe = model.stream(processor, **ALL)
    probe.feed(np.stack([one] * per_step))
    stream = model.stream(processor, max_memory=2 * probe.memory_bytes(), **ALL)
    stream.feed(np.stack([one] * 4 * per_step + [two] * 6 * per_step))
    first, second = stream._memory.groups.items
    features = [group.features(torch.float32, stream._memory.width) for group in (first, second)]
    torch.testing.assert_close(features[0], probe._memory.groups.items[0].features(torch.float32, stream._memory.width))
    assert not torch.allclose(features[0], features[1])
    assert [held[:2] for held in stream.held()] == [
        (0.0, 3.0 * per_step),
        (4.0 * per_step, 9.0 * per_step),
    ]


@MEMORIES
def test_a_question_neither_changes_nor_delays_what_is_stored(case, memory):
    _, model, processor = case
    shown = pictures(40)
    alone = model.stream(processor, memory=memory, tokens_per_frame=3, max_memory=40_000)
    alone.feed(shown)
    asked = model.stream(processor, memory=memory, tokens_per_frame=3, max_memory=40_000)
    answering, fed = threading.Event(), threading.Event()

    class Waits:
        """Lets the answer wait, in its first step, until everything was fed."""

        def __call__(self, input_ids, scores):
            answering.set()
            assert fed.wait(60)
            return scores

    asked.feed(shown[:7])
    before = asked.ask(QUESTION, **STEP)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(asked.ask(QUESTION, logits_processor=[Waits()], **STEP)), daemon=True
    )
    thread.start()
    assert answering.wait(60)
    asked.feed(shown[7:])
    fed.set()
    thread.join(60)
    assert answers == [before]
    assert same(held(alone), held(asked))
    assert alone.ask(QUESTION, **STEP) == asked.ask(QUESTION, **STEP)


@MEMORIES
def test_streams_share_a_model_in_threads(case, memory):
    _, model, processor = case
    shown = [pictures(12, seed) for seed in range(3)]
    expected = []
    for frames in shown:
        stream = model.stream(processor, memory=memory, tokens_per_frame=3)
        stream.feed(frames)
        expected.append((held(stream), stream.ask(QUESTION, **STEP)))
    assert len({answer for _, answer in expected}) > 1
    found = [None] * 3

    def run(number):
        stream = model.stream(processor, memory=memory, tokens_per_frame=3)
        for frame in shown[number]:
            stream.feed(frame)
            stream.ask(QUESTION, **STEP)
        found[number] = held(stream), stream.ask(QUESTION, **STEP)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for (ours, answer), (theirs, other) in zip(found, expected, strict=True):
        assert same(ours, theirs)
        assert answer == other


@MEMORIES
def test_frames_one_by_one_are_frames_at_once(case, memory):
    _, model, processor = case
    shown = pictures(9)
    at_once, one_by_one, iterated = (model.stream(processor, memory=memory, tokens_per_frame=3) for _ in range(3))
    at_once.feed(shown)
    for frame in shown:
        one_by_one.feed(frame)
    iterated.feed(frame for frame in shown)
    assert same(held(at_once), held(one_by_one))
    assert same(held(at_once), held(iterated))
    # The caller's array is not what is held.
    buffer = shown[0].copy()
    reused = model.stream(processor, memory=memory, tokens_per_frame=3)
    for frame in shown:
        buffer[:] = frame
        reused.feed(buffer)
    assert same(held(at_once), held(reused))


@MEMORIES
def test_a_file_is_its_frames(case, memory, tmp_path):
    _, model, processor = case
    path = write_video(tmp_path / "clip.mp4", 60, fps=10)
    stream = model.stream(processor, memory=memory, tokens_per_frame=3, fps=2.0)
    assert stream.feed(path) == 12
    assert stream.feed(path) == 12
    times = [first for first, _, _ in stream.held()]
    assert times == pytest.approx(np.arange(0, 12, 12 / len(times)))
    with pytest.raises(ValueError, match="times of its frames"):
        stream.feed(path, timestamps=[1.0])
    with pytest.raises(FileNotFoundError):
        stream.feed(tmp_path / "none.mp4")


@MEMORIES
def test_a_gap_and_equal_times(case, memory):
    """Positions know of no gap: they are those of the frames that are there."""
    _, model, processor = case
    shown = pictures(6)
    plain, gap = (
        model.stream(processor, memory=memory, tokens_per_frame=3),
        model.stream(processor, memory=memory, tokens_per_frame=3),
    )
    plain.feed(shown)
    gap.feed(shown, timestamps=[0, 0, 1.5, 7200, 7201, 90000])
    assert plain.ask(QUESTION, **STEP) == gap.ask(QUESTION, **STEP)
    assert gap.held()[-1][1] >= 7201
    with pytest.raises(ValueError, match="come"):
        gap.feed(shown[0], timestamps=89999.0)
    assert gap.num_frames == 6


@MEMORIES
def test_another_resolution_is_scaled_to_the_first(case, memory):
    _, model, processor = case
    stream = model.stream(processor, memory=memory, tokens_per_frame=3)
    stream.feed(pictures(4))
    stream.feed(pictures(4, size=(96, 128)))
    assert stream.num_resized == 4
    assert len({group.num_bytes for group in stream._memory.groups.items}) == 1
    assert isinstance(stream.ask(QUESTION, **STEP), str)


@MEMORIES
def test_wrong_input_gets_one_clear_error(case, memory):
    _, model, processor = case
    stream = model.stream(processor, memory=memory)
    with pytest.raises(ValueError, match="no frame yet"):
        stream.ask(QUESTION)
    assert stream.memory_bytes() == stream.num_frames == stream.num_groups == 0
    for frames, error in (
        (pictures(1)[0][..., :2], "RGB pictures"),
        (pictures(2).astype(np.float32), "RGB pictures"),
        (7, "cannot take in int"),
        (None, "cannot take in NoneType"),
    ):
        with pytest.raises(ValueError, match=error):
            stream.feed(frames)
    assert stream.num_frames == 0
    stream.feed(pictures(2))
    for asked, error in (
        (dict(question=" "), "empty"),
        (dict(question=QUESTION, num_tokens=0), "num_tokens=0"),
    ):
        with pytest.raises(ValueError, match=error):
            stream.ask(**asked)
    with pytest.raises(ValueError, match="holds no frame"):
        model.stream(processor, memory=memory, max_memory=100).feed(pictures(2))
    stream.reset()
    assert stream.num_frames == 0
    with pytest.raises(ValueError, match="no frame yet"):
        stream.ask(QUESTION)


class Once:
    """Times whose number is not known beforehand."""

    def __init__(self, *times):
        self.times = times

    def __iter__(self):
        return iter(self.times)


@pytest.mark.parametrize("times", [3.0, np.float64(3), torch.tensor(3.0), [3], (3.0,), np.array([3.0]), Once(3.0)])
def test_times_of_a_single_picture(case, times):
    _, model, processor = case
    stream = model.stream(processor)
    assert stream.feed(Image.fromarray(pictures(1)[0]), timestamps=times) == 1
    assert stream._before.last == 3.0


@pytest.mark.parametrize(
    ("times", "come_in", "error"),
    [
        ([1.0], 0, "timestamps has 1 times for 3 pictures"),
        (1.0, 0, "timestamps has 1 times for 3 pictures"),
        (Once(1.0, 2.0), 2, "more pictures than timestamps"),
        (Once(1.0, 2.0, 3.0, 4.0), 3, "more timestamps than pictures"),
        ([1.0, 0.5, 2.0], 1, "A frame at 0.5 seconds comes after one at 1.0"),
        ([1.0, float("nan"), 2.0], 1, "A frame has the time nan"),
        (["1", "2", "3"], 0, "A frame has the time '1'"),
        ([datetime.timedelta(0)] * 3, 0, "A frame has the time datetime"),
    ],
)
def test_times_that_do_not_fit(case, times, come_in, error):
    _, model, processor = case
    stream = model.stream(processor)
    with pytest.raises(ValueError, match=error):
        stream.feed(pictures(3), timestamps=times)
    assert stream.num_frames == come_in


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (dict(memory="disk"), "memory='disk' is unknown"),
        (dict(tokens_per_frame=4, retention_ratio=0.5), "give one of them"),
        (dict(retention_ratio=1.5), "outside"),
        (dict(tokens_per_frame=0), "tokens_per_frame=0"),
        (dict(max_memory=1.5), "max_memory=1.5"),
        (dict(tokens_per_question=None), "tokens_per_question=None"),
        (dict(max_memory=None, retention_ratio=0.5), "max_memory=None"),
        (dict(bits=3), "bits=3"),
        (dict(fps=0), "fps=0"),
        (dict(when_full="newest"), "'newest' is not a rule"),
        (dict(when_full="contribution", memory="kv"), "is not a rule of memory='kv'"),
        (dict(reducer="fastv"), "inside the language model"),
        (dict(reducer="attention"), "reads the question"),
        (dict(reducer=Marc(clips=1, clips_by="attention")), "reads the question"),
        (dict(reducer="cacovid"), "give both or neither"),
        (dict(standing=["what"]), "give both or neither"),
        (dict(reducer="cacovid", standing=[" "]), "standing question is empty"),
        (dict(memory="kv", compressor="uniform"), "leave it out"),
        (dict(bit=4), "did you mean bits"),
    ],
)
def test_settings_are_checked(case, settings, error):
    _, model, processor = case
    with pytest.raises(ValueError, match=error):
        model.stream(processor, **settings)


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", [family for family in FAMILIES if BACKBONES[family].words_around_frames])
def test_other_families_are_refused_by_name(family):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(family))
    with pytest.raises(ValueError, match=f"{family}.* is not supported, whose prompts have words between frames"):
        model.stream(tiny_processor(family))


@pytest.mark.slow
@MEMORIES
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES[len(FIRST) :] if not BACKBONES[family].words_around_frames]
)
def test_further_families(family, memory):
    stock = stock_model(family)
    model, processor = CaCoVidForConditionalGeneration.from_backbone(stock), with_video_reader(tiny_processor(family))
    shown = pictures(6)
    stream = model.stream(processor, memory=memory, **ALL)
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    expected = stock.generate(**inputs, **STEP)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(stream.generate(QUESTION, num_tokens=10**6, **STEP), expected)
    # By the default reduction, which reads the tower, into a memory that is full.
    reduced = model.stream(processor, memory=memory, tokens_per_frame=3, max_memory=stream.memory_bytes() // 2)
    reduced.feed(pictures(30))
    assert reduced.memory_bytes() <= stream.memory_bytes() // 2
    assert {count for _, _, count in reduced.held()} == {3}
    assert isinstance(reduced.ask(QUESTION, num_tokens=5, **STEP), str)


@MEMORIES
@pytest.mark.parametrize("frames", [3, 8])
@pytest.mark.parametrize("bits", [4, 16])
def test_a_saved_stream_goes_on(case, memory, tmp_path, bits, frames):
    _, model, processor = case
    shown = pictures(20)
    settings = dict(memory=memory, tokens_per_frame=3, bits=bits, max_memory=20_000)
    stream = model.stream(processor, **settings)
    stream.feed(shown[:frames])
    stream.save(tmp_path / "stream.safetensors")
    again = model.load_stream(tmp_path / "stream.safetensors", processor)
    assert isinstance(again, VideoStream)
    assert again.settings == stream.settings
    assert (again.num_frames, again.held()) == (stream.num_frames, stream.held())
    assert again.ask(QUESTION, **STEP) == stream.ask(QUESTION, **STEP)
    for one in (stream, again):
        one.feed(shown[frames:])
    assert same(held(again), held(stream))
    assert again.ask(QUESTION, **STEP) == stream.ask(QUESTION, **STEP)


def test_what_is_not_a_saved_stream(case, tmp_path):
    stock, model, processor = case
    empty = model.stream(processor)
    empty.save(tmp_path / "empty")
    assert model.load_stream(tmp_path / "empty", processor).num_frames == 0
    with pytest.raises(FileNotFoundError, match="saved stream"):
        model.load_stream(tmp_path / "none", processor)
    (tmp_path / "text").write_text("no stream at all, but long enough to be read as a header")
    with pytest.raises(ValueError, match="not a saved stream"):
        model.load_stream(tmp_path / "text", processor)
    other = next(family for family in FIRST if family != stock.config.model_type)
    theirs = CaCoVidForConditionalGeneration.from_backbone(stock_model(other))
    with pytest.raises(ValueError, match="load it with the same model"):
        theirs.load_stream(tmp_path / "empty", with_video_reader(tiny_processor(other)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("data")
    with pytest.raises(OSError, match="folder is a folder"):
        model.stream(processor).save(tmp_path / "folder")
    assert (tmp_path / "folder" / "kept").read_text() == "data"


def test_the_documented_code_runs(capsys, monkeypatch, tmp_path):
    """The blocks of docs/how_to/streams.md, one after the other, and what they print."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).resolve().parents[2] / "docs" / "how_to" / "streams.md").read_text(encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(block, names)
    printed = re.search(r"```text\n(.*?)```", text, flags=re.S).group(1)
    assert capsys.readouterr().out == printed + f"{names['clip'].questions[0].answer}\n"
    assert names["watched"].num_groups == 8


def test_worth_is_the_largest_score_of_the_standing_questions(case):
    _, model, processor = case
    questions = ("what color is the circle", "red square", "the answer")
    per_step = model.family.frames_per_step(model.backbone.config)
    shown = pictures(2 * per_step)
    stream = model.stream(processor, tokens_per_frame=2, reducer="cacovid", standing=questions, bits=32)
    stream.feed(shown)
    every = model.stream(processor, **ALL)
    every.feed(shown)
    for group, whole in zip(stream._memory.groups.items, every._memory.groups.items, strict=True):
        one = model.stream(processor, **ALL)
        number = int(group.frames[0]) * per_step
        one.feed(shown[number : number + per_step])
        memory, groups = one._snapshot()
        scores = []
        for question in questions:
            prompt = memory._embedded(words_of(model, processor, question), groups)
            (found,) = model.resolve_compressor(None).score(prompt, model)
            scores.append(found.token[0])
        worth = torch.stack(scores).amax(0)
        kept = worth.topk(2).indices.sort().values
        assert group.places.tolist() == kept.tolist()
        torch.testing.assert_close(group.worth.float(), worth[kept], atol=2e-3, rtol=2e-3)
        features = whole.features(torch.float32, memory.width)[kept]
        torch.testing.assert_close(group.features(torch.float32, memory.width), features)


@pytest.mark.slow
@MEMORIES
def test_ten_thousand_frames(case, memory):
    _, model, processor = case
    stream = model.stream(processor, memory=memory, tokens_per_frame=2, max_memory=20_000, window=8)
    for seed in range(100):
        stream.feed(pictures(100, seed))
        assert stream.memory_bytes() <= 20_000
    assert stream.num_frames == 10_000
    assert isinstance(stream.ask(QUESTION, **STEP), str)
