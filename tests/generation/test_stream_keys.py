"""A stream's memory of keys and values: what the published code gets wrong is right here."""

import pytest
import torch
from helpers.models import FIRST, masked_inputs, stock_model
from helpers.processors import tiny_processor
from helpers.streams import QUESTION, STEP, never_repeats, pictures, whole_prompt
from torch.nn.functional import cosine_similarity

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.generation.stream.layers import Layers
from cacovid_hf.generation.stream.quantised import pack, packed_bytes, unpack


@pytest.fixture(params=FIRST)
def case(request):
    stock = stock_model(request.param)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock), with_video_reader(tiny_processor(request.param))


class Logits:
    """Notes what every step of a generation computes."""

    def __init__(self):
        self.steps = []

    def __call__(self, input_ids, scores):
        self.steps.append(scores.clone())
        return scores


def logits_of(generate, *args, **kwargs):
    seen = Logits()
    ids = generate(*args, logits_processor=[seen], **STEP, **kwargs)
    return ids, torch.stack(seen.steps)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_feed_and_ask_are_one_forward_over_the_whole_prompt(case, frames, bits):
    """With a window and a retrieval larger than the stream."""
    stock, model, processor = case
    shown = pictures(frames)
    stream = model.stream(processor, memory="kv", tokens_per_frame=1000, bits=bits)
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    expected, logits = logits_of(stock.generate, **inputs)
    ids, found = logits_of(stream.generate, QUESTION)
    scale = logits[logits.isfinite()].abs().max()
    finite = logits.isfinite()
    if bits == 8:  # the first step, before another word may be chosen
        finite[1:] = False
    tolerance = {8: 0.05, 16: 2e-3, 32: 1e-5}[bits] * scale
    assert (found - logits)[finite].abs().max() < tolerance
    if bits == 32:
        assert torch.equal(ids, expected[:, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("tokens", [1, 3])
def test_reduced_frames_are_one_forward_too(case, tokens):
    """The oracle: the stock model on the whole prompt, with the tokens that were not stored masked out."""
    stock, model, processor = case
    shown = pictures(6)
    stream = model.stream(processor, memory="kv", tokens_per_frame=tokens, bits=32, reducer="uniform")
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    (span,) = model.embed(**inputs).layout.videos
    keep = torch.zeros(span.num_frames, span.tokens_per_frame, dtype=torch.bool)
    for row, group in zip(keep, stream._memory.groups.items, strict=True):
        row[group.places.long()] = True
    places = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    places[span.positions[~keep.flatten()]] = False
    expected = stock.generate(**masked_inputs(stock, inputs, [places.nonzero()[:, 0]]), **STEP)
    assert torch.equal(stream.generate(QUESTION, **STEP), expected[:, inputs["input_ids"].shape[1] :])


def test_positions_never_repeat_when_the_window_is_full(case, monkeypatch):
    _, model, processor = case
    stream = model.stream(processor, memory="kv", tokens_per_frame=2, window=6)
    read = []

    def noted(self, embeds, positions, behind, stock=Layers.read):
        if behind is not None:
            read.append(torch.cat([behind[1].to(positions), positions], dim=-1))
        return stock(self, embeds, positions, behind)

    monkeypatch.setattr(Layers, "read", noted)
    stream.feed(pictures(30))
    assert max(positions.shape[-1] for positions in read) == read[-1].shape[-1]  # the words, three frames and a new one
    assert all(never_repeats(positions) for positions in read)
    # A full window is the same place every time, and time goes on within it.
    assert all((positions[..., -2:] > positions[..., :1]).any() for positions in read)


def test_each_layer_retrieves_the_groups_most_like_its_question(case, monkeypatch):
    stock, model, processor = case
    stream = model.stream(processor, memory="kv", tokens_per_frame=2, bits=32)
    stream.feed(pictures(20))
    groups = stream._memory.groups.items
    queries, turned = {}, []
    layers = stock.get_decoder().layers

    def note(number):
        def hook(module, args, output):
            queries.setdefault(number, output[0])

        return hook

    handles = [layer.self_attn.q_proj.register_forward_hook(note(i)) for i, layer in enumerate(layers)]

    def noted(self, layer, states, positions, stock=Layers.turned):
        turned.append((layer, states, positions))
        return stock(self, layer, states, positions)

    monkeypatch.setattr(Layers, "turned", noted)
    stream.generate(QUESTION, num_tokens=6, **STEP)
    for handle in handles:
        handle.remove()
    assert [layer for layer, _, _ in turned] == list(range(len(layers)))
    words = stream._memory.first.shape[-1]
    choices = []
    for layer, states, positions in turned:
        config = stock.config.get_text_config()
        heads, width = config.num_key_value_heads, layers[0].self_attn.head_dim
        query = queries[layer].view(len(queries[layer]), heads, -1, width).mean((0, 2)).flatten()
        like = torch.stack([cosine_similarity(group.keys[layer].float(), query, dim=0) for group in groups])
        chosen = sorted(like.argsort(descending=True)[:3].tolist())
        choices.append(chosen)
        expected = torch.cat([unpack(groups[i].states, states.dtype)[layer] for i in chosen], dim=-1)
        torch.testing.assert_close(states[..., words:], expected)
        assert positions.shape[-1] == states.shape[-1] == words + 6
        assert never_repeats(positions)
    assert len({tuple(chosen) for chosen in choices}) > 1  # or nothing was compared


def test_frames_that_are_not_retrieved_have_no_say(case):
    """What a question does not retrieve may be anything."""
    _, model, processor = case
    stream = model.stream(processor, memory="kv", tokens_per_frame=2)
    stream.feed(pictures(20))
    one = stream.generate(QUESTION, num_tokens=4, **STEP)
    every = stream.generate(QUESTION, num_tokens=10**6, **STEP)
    assert not torch.equal(one, every)
    assert torch.equal(one, stream.generate(QUESTION, num_tokens=3, **STEP))  # whole groups


@pytest.mark.parametrize(
    "how", [dict(num_beams=3), dict(do_sample=True, top_k=5), dict(num_return_sequences=2, num_beams=2)]
)
def test_ways_of_decoding(case, how):
    stock, model, processor = case
    shown = pictures(4)
    stream = model.stream(processor, memory="kv", tokens_per_frame=1000, bits=32)
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    settings = {**STEP, **how}
    torch.manual_seed(3)
    expected = stock.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    torch.manual_seed(3)
    assert torch.equal(stream.generate(QUESTION, **settings), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1, 3, 50, 64])
def test_an_error_is_at_most_half_a_step(bits, size):
    torch.manual_seed(bits)
    for scale, shift in ((1, 0), (1e-3, 5), (300, -900), (1e-6, 0), (0, 3), (0, 0), (1e-7, 1e-4), (1, -1e-6)):
        rows = torch.randn(200, size) * scale + shift
        packed = pack(rows, bits)
        step = packed.step.float()[:, None]
        error = (unpack(packed, torch.float32) - rows).abs()
        assert (error <= step / 2 * (1 + 1e-3) + rows.abs() * 2e-7).all(), (scale, shift)
        # And a step is no wider than the row and the rounding of 16 bits ask for.
        spread = rows.amax(1) - rows.amin(1)
        assert (step[:, 0] <= (spread + rows.abs().amax(1) * 2e-3) / (2**bits - 1) * 1.01 + 2e-7).all(), (scale, shift)
        assert packed.num_bytes == packed_bytes(200, size, bits, 4) == 200 * (-(-size * bits // 8) + 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sixteen_bits_and_as_it_is(dtype):
    rows = torch.randn(7, 5).to(dtype)
    assert torch.equal(unpack(pack(rows, 32), dtype), rows)
    if dtype != torch.float32:
        assert torch.equal(unpack(pack(rows, 16), dtype), rows)
    torch.testing.assert_close(unpack(pack(rows, 16), dtype), rows, rtol=1e-3, atol=1e-6)
    for bits in (16, 32):
        assert pack(rows, bits).num_bytes == packed_bytes(7, 5, bits, dtype.itemsize)


def test_bytes_are_those_of_the_codes_and_their_steps(case):
    """The published 15.7 times leave out where the steps begin and how wide they are; they are counted here."""
    stock, model, processor = case
    config = stock.config.get_text_config()
    stream = model.stream(processor, memory="kv", tokens_per_frame=2, bits=4)
    stream.feed(pictures(2))
    (group, *_) = stream._memory.groups.items
    rows = 2 * config.num_hidden_layers * config.num_key_value_heads * stock.get_decoder().layers[0].self_attn.head_dim
    assert group.states.num_bytes == rows * (1 + 2 + 2)
    assert group.num_bytes == rows * 5 + rows // 2 * 2 + 2 * (4 + 2) + 16


def test_a_question_in_front_of_the_video_is_refused(case):
    _, model, processor = case
    stream = model.stream(processor, memory="kv")
    stream.feed(pictures(2))
    with pytest.raises(ValueError, match="leave it out"):
        stream.ask(QUESTION, compressor="uniform")
    processor.chat_template = "{%- for content in messages[0]['content'] if content['type'] == 'text' -%}{{ content['text'] }} {% endfor -%}<video> answer"
    stream = model.stream(processor, memory="kv")
    stream.feed(pictures(2))
    with pytest.raises(ValueError, match="use memory='features'"):
        stream.ask(QUESTION)
