"""Later turns of a conversation from the cache of a compressed prompt, against the oracle: the uncompressed stock model without a cache, the dropped
tokens of all turns masked out as keys, at the positions of the whole conversation.
"""

import copy

import pytest
import torch
from helpers import flash_stand_in
from helpers.cut_oracle import CutPrompts
from helpers.families.base import WORD_FIELDS
from helpers.models import (
    BY_NAME,
    FAMILIES,
    Image,
    Video,
    family_of,
    masked_inputs,
    prompt_inputs,
    skip_unless_a_cache_can_be_cut,
    skip_unless_split,
    skip_without_flash,
    stock_inputs,
    stock_model,
    twice,
    wrapped,
)
from transformers import DynamicCache, StaticCache

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import Uniform

STEP = dict(do_sample=False, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
TEXT = [[7]]
CONVERSATIONS = {
    "text turns": ([[3, Video(), 6]], TEXT, [[4]]),
    "a new video": ([[3, Video(), 6]], [[2, Video(4, 3, 2, 2.5), 5]], [[4]]),
    "text first": ([[6]], [[2, Video(), 5]], TEXT),
    "images": ([[2, Image(), 2, Video(), 6]], [[2, Image(), 3]], [[1, Video(4, 3, 2, 2.5), 2, Image(), 4]]),
    "images side by side": ([[2, Image(), Image(), 2, Video(), 6]], [[4, Video(4, 3, 2, 2.5), 3]], TEXT),
    "new images side by side": ([[2, Image(), 3]], [[2, Image(), Image(), 2, Video(4, 3, 2, 2.5), 5]], TEXT),
    "a ragged batch": (
        [[3, Video(), 6], [1, Video(), 11]],
        [[4], [4]],
        [[2, Video(4, 3, 2, 2.5), 5], [2, Video(4, 3, 2), Video(4), 2]],
    ),
    "ragged new turns": ([[3, Video(), 6], [1, Video(), 11]], [[4], [9]], [[2], [2, Video(4), 5]]),
}
# Whose first turn has images and no video, so that it is the stock model's.
BEGUN_BY_STOCK = ("new images side by side",)


def words_of(inputs):
    """The inputs without those of videos and images."""
    return {name: value for name, value in inputs.items() if name in WORD_FIELDS}


def joined(before, sequences, turn):
    """The inputs of the whole conversation so far, rows of pixels in the order of the placeholders, from those of the turns."""
    added = sequences.shape[1] - before["input_ids"].shape[1]
    whole = {
        "input_ids": torch.cat([sequences, turn["input_ids"]], dim=1),
        "attention_mask": torch.cat(
            [before["attention_mask"], torch.ones(len(sequences), added).long(), turn["attention_mask"]], dim=1
        ),
    }
    if "mm_token_type_ids" in turn:
        types = [before["mm_token_type_ids"], torch.zeros(len(sequences), added).long(), turn["mm_token_type_ids"]]
        whole["mm_token_type_ids"] = torch.cat(types, dim=1)
    return whole


class Conversation:
    """Turns of one conversation, with the pixels of each row and turn apart, so that they can be put in either order."""

    def __init__(self, model, rows):
        self.model, self.rows = model, rows
        self.parts = [[] for _ in rows[0]]  # of each row, the single-row inputs of its turns
        self.inputs = None
        self.kept = []

    def turn(self, number, sequences=None):
        """Inputs with the pixels of the whole conversation, and with those of the new turn alone."""
        rows = self.rows[number]
        new = prompt_inputs(self.model, rows, seed=number + 1)
        for row, parts in enumerate(self.parts):
            parts.append(prompt_inputs(self.model, [rows[row]], seed=100 * number + row))
        fresh = self._pixels([parts[-1:] for parts in self.parts])
        new = {**words_of(new), **fresh}
        start = 0 if self.inputs is None else sequences.shape[1]
        ids = new if self.inputs is None else joined(self.inputs, sequences, new)
        self.inputs = {**words_of(ids), **self._pixels(self.parts)}
        return start, new, {**words_of(ids), **fresh}

    def _pixels(self, rows):
        fields = [{n: part[n] for n in part if n not in WORD_FIELDS} for parts in rows for part in parts]
        return family_of(self.model).stacked(fields)

    def keep(self, start, places):
        self.kept.append(torch.where(places >= 0, places + start, -1))


def hold(stock, conversation, rows, pixels="whole", new_cache=None, compressor=None, **settings):
    """Talk, each turn against the oracle; returns the last output."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    talk, cache, sequences, asked = Conversation(stock, conversation), new_cache, None, 0
    how = dict(retention_ratio=0.25, compressor=compressor)
    for number in range(len(conversation)):
        start, new, later = talk.turn(number, sequences)
        inputs = talk.inputs if pixels == "whole" else later
        talk.keep(asked, torch.arange(start - asked).expand(rows, -1))  # what was generated
        talk.keep(start, model.compress(**new, **how).kept_indices)
        asked = talk.inputs["input_ids"].shape[1]
        ours = model.generate(**inputs, **how, past_key_values=cache, **STEP, **settings)
        reference = stock.generate(**masked_inputs(stock, talk.inputs, torch.cat(talk.kept, dim=1)), **STEP)
        assert torch.equal(ours.sequences, reference.sequences), f"turn {number}"
        for a, b in zip(ours.logits, reference.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
        cache, sequences = ours.past_key_values, ours.sequences
    return ours, talk


@pytest.mark.parametrize("pixels", ["whole", "new"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_conversations(family, conversation, pixels):
    turns = CONVERSATIONS[conversation]
    stock, _ = wrapped(family)
    if conversation in BEGUN_BY_STOCK and pixels == "new" and BY_NAME[family].mrope:
        with pytest.raises(ValueError, match="not those of the whole conversation"):
            hold(stock, turns, len(turns[0]), pixels, compressor=Uniform())
        return
    ours, talk = hold(stock, turns, len(turns[0]), pixels, compressor=Uniform())
    # The cache has the kept tokens alone, and what was dropped shows.
    kept = max(int((row >= 0).sum()) for row in torch.cat(talk.kept, dim=1))
    assert kept <= ours.past_key_values.get_seq_length() < ours.sequences.shape[1]
    everything = stock.generate(**stock_inputs(stock, talk.inputs), **STEP)
    assert not torch.allclose(everything.logits[0], ours.logits[0], atol=1e-2)


CUT = {"a ragged batch": 2, "ragged new turns": 1}  # the first turn that pads a row behind its beginning


@pytest.mark.spread(4)
@pytest.mark.parametrize("words", [True, False], ids=["all words", "words of kept frames"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_by_cutting(family, conversation, words):
    """Also where a masked token is still read; padding between the turns would be too, and is refused there."""
    turns, stock = CONVERSATIONS[conversation], stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, keep_frame_words=words)
    talk, cache, sequences, asked = Conversation(stock, turns), None, None, 0
    how = dict(retention_ratio=0.25, compressor="uniform")
    for number in range(len(turns)):
        start, new, later = talk.turn(number, sequences)
        inputs = talk.inputs if conversation in BEGUN_BY_STOCK else later
        talk.keep(asked, torch.arange(start - asked).expand(len(turns[0]), -1))
        talk.keep(start, model.compress(**new, **how).kept_indices)
        asked = talk.inputs["input_ids"].shape[1]
        if not BY_NAME[family].attends and number == CUT.get(conversation):
            with pytest.raises(ValueError, match=rf"padding between its turns, which the states of {family}"):
                model.generate(**inputs, **how, past_key_values=cache, **STEP)
            return
        ours = model.generate(**inputs, **how, past_key_values=cache, **STEP)
        _, logits = CutPrompts(stock, talk.inputs, torch.cat(talk.kept, dim=1)).greedy(STEP["max_new_tokens"])
        torch.testing.assert_close(torch.stack(list(ours.logits), dim=1), logits, atol=1e-3, rtol=1e-3)
        cache, sequences = ours.past_key_values, ours.sequences


def test_padding_between_steps_of_a_loop_is_refused_where_a_state_would_read_it():
    """Behind a row that has ended it is not read by anything that follows."""
    stock, model = wrapped("qwen3_5")
    inputs = prompt_inputs(stock, CONVERSATIONS["a ragged batch"][0])
    how = dict(retention_ratio=0.25, use_cache=True)
    mask = torch.cat([inputs["attention_mask"], torch.tensor([[0, 1], [1, 1]])], dim=1)
    new = torch.tensor([[0, 20], [30, 40]])
    with torch.no_grad():
        cache = model(**inputs, **how).past_key_values
        with pytest.raises(ValueError, match="Row 0 of the conversation has padding between its turns"):
            model(input_ids=new, attention_mask=mask, past_key_values=cache)
        cache = model(**inputs, **how).past_key_values
        for step in range(2):
            masked = torch.cat([inputs["attention_mask"], torch.tensor([[0, 0], [1, 1]])[:, : step + 1]], dim=1)
            ended = model(input_ids=new[:, step : step + 1], attention_mask=masked, past_key_values=cache)
        alone = model(**inputs, **how).past_key_values
        whole = model(input_ids=new, past_key_values=alone)
    torch.testing.assert_close(ended.logits[1, -1], whole.logits[1, -1])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_types_of_the_new_turn_alone_are_refused(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, [[3, Video(), 6]])
    first = model.generate(**inputs, retention_ratio=0.25, **STEP)
    later = more(inputs, first.sequences.clone(), rows=1)
    later["mm_token_type_ids"] = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"mm_token_type_ids has 4 places, input_ids {later['input_ids'].shape[1]}:"):
        model.generate(**later, retention_ratio=0.25, past_key_values=first.past_key_values, **STEP)


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "qwen3_5_moe"])
def test_a_mask_that_hides_cached_tokens_is_refused_where_a_state_has_read_them(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, [[3, Video(), 6], [2, Video(), 2]])
    first = model.generate(**inputs, retention_ratio=0.25, **STEP)
    later = more(inputs, first.sequences.clone(), rows=2)
    hiding = {**later, "attention_mask": later["attention_mask"].clone()}
    hiding["attention_mask"][0, :2] = 0
    cache = copy.deepcopy(first.past_key_values)
    new, mask = later["input_ids"][:, -4:], hiding["attention_mask"]
    calls = (
        lambda: model.generate(**hiding, retention_ratio=0.25, past_key_values=first.past_key_values, **STEP).logits[0],
        lambda: model(input_ids=new, attention_mask=mask, past_key_values=cache).logits[:, -1],
    )
    if BY_NAME[family].attends:
        seen = model.generate(**later, retention_ratio=0.25, past_key_values=copy.deepcopy(cache), **STEP).logits[0]
        with torch.no_grad():
            hidden = [call() for call in calls]
        torch.testing.assert_close(hidden[0], hidden[1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(hidden[0][0], seen[0], atol=1e-2)
        torch.testing.assert_close(hidden[0][1], seen[1], atol=1e-4, rtol=1e-4)
        return
    for call in calls:
        with torch.no_grad(), pytest.raises(ValueError, match="attention_mask hides cached tokens of row 0"):
            call()
    # The padding of a shorter row is none.
    assert int(later["attention_mask"][1, 0]) == 0
    model.generate(**later, retention_ratio=0.25, past_key_values=first.past_key_values, **STEP)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["static", "empty dynamic", "chunks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_caches_of_the_caller(family, cache, attention):
    stock = stock_model(family, attention)
    config = stock.config.get_text_config()
    given = {"static": StaticCache(config=config, max_cache_len=120), "empty dynamic": DynamicCache(config=config)}.get(
        cache
    )
    settings = dict(prefill_chunk_size=3) if cache == "chunks" else {}
    skip_unless_split(family, settings)
    turns = CONVERSATIONS["a new video"]
    ours, _ = hold(stock, turns, 1, new_cache=given, compressor=Uniform(), **settings)
    if given is not None:
        assert ours.past_key_values is given


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention(family, monkeypatch):
    """The gaps of a new video's positions behind a cache are not read as packed sequences."""
    skip_without_flash(family)
    flash_stand_in.install(monkeypatch)
    stock, flash = stock_model(family), stock_model(family)
    flash_stand_in.use_flash_attention(flash)
    # A new turn of one row is a single prompt.
    for conversation in ("a new video", "ragged new turns") if BY_NAME[family].flash_alone else ("ragged new turns",):
        turns = CONVERSATIONS[conversation]
        expected, talk = hold(stock, turns, len(turns[0]), compressor=Uniform())
        model = CaCoVidForConditionalGeneration.from_backbone(flash)
        cache, sequences, talk = None, None, Conversation(stock, turns)
        for number in range(len(turns)):
            talk.turn(number, sequences)
            ours = model.generate(
                **talk.inputs, retention_ratio=0.25, compressor="uniform", past_key_values=cache, **STEP
            )
            cache, sequences = ours.past_key_values, ours.sequences
        assert torch.equal(sequences, expected.sequences)
        torch.testing.assert_close(ours.logits[0], expected.logits[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_policy_reads_the_new_turn(family):
    """The policy's own choice in a later turn: that of the new turn's text and video alone, the last answer's last token included."""
    stock, model = wrapped(family)
    how = dict(retention_ratio=0.25)
    talk = Conversation(stock, CONVERSATIONS["a new video"])
    talk.turn(0)
    first = model.generate(**talk.inputs, **how, **STEP)
    kept_first = model.compress(**talk.inputs, **how).kept_indices
    start, new, _ = talk.turn(1, first.sequences)
    new["input_ids"] = torch.cat([first.sequences[:, -1:], new["input_ids"]], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in new:
            new[name] = torch.nn.functional.pad(new[name], (1, 0), value=value)
    between = torch.arange(start - STEP["max_new_tokens"], start - 1)[None]
    kept_second = model.compress(**new, **how).kept_indices + start - 1
    second = model.generate(**talk.inputs, **how, **STEP, past_key_values=first.past_key_values)
    kept = torch.cat([kept_first, between, kept_second], dim=1)
    assert torch.equal(second.sequences, stock.generate(**masked_inputs(stock, talk.inputs, kept), **STEP).sequences)


@pytest.fixture(params=FAMILIES)
def first_turn(request):
    stock, model = wrapped(request.param)
    inputs = prompt_inputs(stock, [[3, Video(), 6]])
    return stock, model, inputs, model.generate(**inputs, retention_ratio=0.25, **STEP)


def more(inputs, sequences, tokens=(50, 60, 70), rows=1):
    turn = {"input_ids": torch.tensor([list(tokens)] * rows), "attention_mask": torch.ones(rows, len(tokens)).long()}
    if "mm_token_type_ids" in inputs:
        turn["mm_token_type_ids"] = torch.zeros(rows, len(tokens)).long()
    return {**inputs, **joined(inputs, sequences, turn)}


def test_a_conversation_forks_and_goes_back(first_turn):
    """A copy of the cache goes its own way, and a cache that was cropped goes on from there."""
    _, model, inputs, first = first_turn
    skip_unless_a_cache_can_be_cut(model.backbone)
    cache, fork = first.past_key_values, copy.deepcopy(first.past_key_values)
    one, other = more(inputs, first.sequences), more(inputs, first.sequences, (80, 81))
    length = cache.get_seq_length()
    a = model.generate(**one, retention_ratio=0.25, past_key_values=cache, **STEP)
    b = model.generate(**other, retention_ratio=0.25, past_key_values=fork, **STEP)
    assert not torch.equal(a.sequences[:, -4:], b.sequences[:, -4:])
    cache.crop(length - cache.get_seq_length())
    again = model.generate(**other, retention_ratio=0.25, past_key_values=cache, **STEP)
    assert torch.equal(again.sequences, b.sequences)
    cache.crop(length - 2 - cache.get_seq_length())
    again = model.generate(**other, retention_ratio=0.25, past_key_values=cache, **STEP)
    assert torch.equal(again.sequences, b.sequences)


def test_a_compressed_turn_is_gone_on_from_at_any_ratio(first_turn):
    """Text turns need no ratio, and lengths count the caller's conversation."""
    _, model, inputs, first = first_turn
    text = words_of(more(inputs, first.sequences))
    caches = [copy.deepcopy(first.past_key_values) for _ in range(4)]
    length = text["input_ids"].shape[1]
    a = model.generate(**text, past_key_values=caches[0], do_sample=False, max_length=length + 4)
    b = model.generate(**text, retention_ratio=0.5, past_key_values=caches[1], do_sample=False, max_new_tokens=4)
    c = model.generate(**text, retention_ratio=1.0, past_key_values=caches[2], do_sample=False, max_new_tokens=4)
    assert a.shape[1] == length + 4
    assert a.tolist() == b.tolist() == c.tolist()
    text.pop("attention_mask")
    text.pop("mm_token_type_ids", None)
    assert model.generate(**text, past_key_values=caches[3], do_sample=False, max_new_tokens=4).tolist() == a.tolist()


def test_explicit_positions_of_the_whole_conversation(first_turn):
    stock, model, inputs, first = first_turn
    whole = more(inputs, first.sequences)
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    start = inputs["input_ids"].shape[1]
    kept = torch.cat([kept, torch.arange(start, whole["input_ids"].shape[1])[None]], dim=1)
    oracle = masked_inputs(stock, whole, kept)
    cache = copy.deepcopy(first.past_key_values)
    for jump in (0, 5):
        positions = oracle["position_ids"].clone()
        positions[..., start + 3 :] += jump
        ours = model.generate(
            **whole,
            position_ids=positions,
            retention_ratio=0.25,
            past_key_values=copy.deepcopy(cache),
            **STEP,
        )
        reference = stock.generate(**{**oracle, "position_ids": positions}, **STEP)
        assert torch.equal(ours.sequences, reference.sequences)
        torch.testing.assert_close(ours.logits[0], reference.logits[0], atol=1e-3, rtol=1e-3)


def test_several_sequences_go_on_each(first_turn):
    stock, model, inputs, _ = first_turn
    first = model.generate(**inputs, retention_ratio=0.25, **{**STEP, "do_sample": True, "num_return_sequences": 2})
    new = torch.tensor([[50, 60], [70, 80]])
    ids = torch.cat([first.sequences, new], dim=1)
    whole = twice(stock, inputs)
    added = ids.shape[1] - inputs["input_ids"].shape[1]
    whole["input_ids"], whole["attention_mask"] = ids, torch.ones_like(ids)
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, added))
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    kept = torch.cat([kept, torch.arange(ids.shape[1] - added, ids.shape[1])[None]], dim=1).expand(2, -1)
    ours = model.generate(**whole, past_key_values=first.past_key_values, **STEP)
    assert torch.equal(ours.sequences, stock.generate(**masked_inputs(stock, whole, kept), **STEP).sequences)


# ------------------------------------------------------------------ loops of one's own


def loop(model, outputs, steps, mask=None):
    """Greedy tokens `(B, steps)` by `forward` alone, from what it returned for a prompt."""
    tokens = []
    for _ in range(steps):
        cache, logits = (outputs.past_key_values, outputs.logits) if hasattr(outputs, "logits") else outputs[1::-1]
        scores = logits[:, -1].clone()
        scores[:, model.generation_config.suppress_tokens] = -torch.inf
        tokens.append(scores.argmax(-1, keepdim=True))
        given = {"return_dict": hasattr(outputs, "logits")}
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            given["attention_mask"] = mask
        outputs = model(input_ids=tokens[-1], past_key_values=cache, use_cache=True, **given)
    return torch.cat(tokens, dim=1)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rows", ["one", "ragged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_of_forward_makes_the_tokens_of_generate(family, rows, masked):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, CONVERSATIONS["text turns" if rows == "one" else "a ragged batch"][0])
    how = dict(retention_ratio=0.25)
    expected = model.generate(**inputs, **how, do_sample=False, max_new_tokens=6)[:, -6:]
    with torch.no_grad():
        for return_dict in (True, False):
            first = model(**inputs, **how, use_cache=True, return_dict=return_dict)
            assert torch.equal(loop(model, first, 6, inputs["attention_mask"] if masked else None), expected)
        # What generate left is gone on from in the same way, several tokens at once too.
        turn = model.generate(**inputs, **how, **{**STEP, "max_new_tokens": 3})
        step = model(input_ids=turn.sequences[:, -1:], past_key_values=turn.past_key_values)
        assert torch.equal(loop(model, step, 3), expected[:, 3:])
        first = model(**inputs, **how, use_cache=True)
        step = model(input_ids=expected[:, :4], past_key_values=first.past_key_values)
        assert torch.equal(loop(model, step, 2), expected[:, 4:])
        width = inputs["input_ids"].shape[1]
        assert step.kept_indices.tolist() == [list(range(width, width + 4))] * len(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_goes_on_from_a_cache_of_forward(family):
    """It knows what the cache holds, also where the cache is as long as the text before the video and the video itself."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, [[3, Video(), 12]])
    how = dict(retention_ratio=0.8, compressor="uniform")
    with torch.no_grad():
        first = model(**inputs, **how, use_cache=True)
    whole = more(inputs, inputs["input_ids"])
    kept = torch.cat([first.kept_indices, torch.arange(3)[None] + inputs["input_ids"].shape[1]], dim=1)
    ours = model.generate(**whole, **how, past_key_values=first.past_key_values, **STEP)
    assert torch.equal(ours.sequences, stock.generate(**masked_inputs(stock, whole, kept), **STEP).sequences)


def test_a_step_that_does_not_fit_the_cache(first_turn):
    _, model, inputs, first = first_turn
    cache, one = first.past_key_values, first.sequences[:, -1:]
    wrong = {
        "holds 1 sequences, input_ids 2": dict(input_ids=one.expand(2, -1)),
        "attention_mask has 3 places": dict(input_ids=one, attention_mask=torch.ones(1, 3).long()),
        "goes on with new text alone": dict(inputs, retention_ratio=0.25),
        "input_ids are missing": {},
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message):
            model(**given, past_key_values=cache)
    model(input_ids=one, past_key_values=cache)  # none of them did harm
    beams = model.generate(**inputs, retention_ratio=0.25, **{**STEP, "num_beams": 2})
    with pytest.raises(ValueError, match="not known to belong to a prompt"):
        model(input_ids=one, past_key_values=beams.past_key_values)


# ------------------------------------------------------------------ what is refused


def shorter(stock, whole, first):
    return {**whole, "input_ids": first.sequences[:, :5], "attention_mask": torch.ones(1, 5).long()}


def other_words(stock, whole, first):
    ids = whole["input_ids"].clone()
    ids[0, 1] += 1
    return {**whole, "input_ids": ids}


WRONG = {
    "new tokens alone": (shorter, "covers .* places of the conversation, input_ids has 5, so nothing is new"),
    "other words": (other_words, "is of another conversation: row 0 has token .* at place 1"),
    "two rows": (
        lambda stock, whole, first: {n: torch.cat([v, v]) for n, v in whole.items()},
        "holds 1 sequences, input_ids 2",
    ),
    "beams": (
        lambda stock, whole, first: {**whole, "num_beams": 2},
        "one row for each prompt: ask for one beam",
    ),
    "both caches": (
        lambda stock, whole, first: {**whole, "cache_implementation": "static"},
        "A cache beside cache_implementation",
    ),
    "another class": (
        lambda stock, whole, first: {
            **whole,
            "past_key_values": type("MyCache", (DynamicCache,), {})(),
        },
        "A cache of type MyCache does not work",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_one_clear_error(first_turn, wrong):
    stock, model, inputs, first = first_turn
    change, message = WRONG[wrong]
    arguments = {"past_key_values": first.past_key_values, **change(stock, more(inputs, first.sequences), first)}
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments, retention_ratio=0.25, **STEP)


def test_a_static_cache_that_is_too_small(first_turn):
    stock, model, inputs, _ = first_turn
    kept = model.compress(**inputs, retention_ratio=0.25).input_ids.shape[1]
    config = stock.config.get_text_config()
    small = StaticCache(config=config, max_cache_len=kept + 2)
    with pytest.raises(ValueError, match=f"has room for {kept + 2} positions"):
        model.generate(**inputs, retention_ratio=0.25, past_key_values=small, **STEP)
    exact = StaticCache(config=config, max_cache_len=kept + 3)
    first = model.generate(**inputs, retention_ratio=0.25, past_key_values=exact, **STEP)
    with pytest.raises(ValueError, match=f"has room for {kept + 3} positions"):
        model.generate(**more(inputs, first.sequences), retention_ratio=0.25, past_key_values=exact, **STEP)


def test_caches_of_unknown_contents(first_turn):
    stock, model, inputs, first = first_turn
    skip_unless_a_cache_can_be_cut(stock)
    whole = more(inputs, first.sequences)
    beams = model.generate(**inputs, retention_ratio=0.25, **{**STEP, "num_beams": 2})
    with pytest.raises(ValueError, match="not known to belong to a prompt"):
        model.generate(**whole, retention_ratio=0.25, past_key_values=beams.past_key_values, **STEP)
    # The backbone itself wrote on.
    ids = torch.tensor([[50]])
    stock(input_ids=ids, position_ids=ids, past_key_values=first.past_key_values)
    stock(input_ids=ids, position_ids=ids, past_key_values=first.past_key_values)
    with pytest.raises(ValueError, match="not known to belong to a prompt"):
        model.generate(**whole, retention_ratio=0.25, past_key_values=first.past_key_values, **STEP)
    # Rebuilt without what was known of it, a compressed cache is not taken for an uncompressed one.
    bare = DynamicCache()
    for number, layer in enumerate(model.generate(**inputs, retention_ratio=0.25, **STEP).past_key_values.layers):
        bare.update(layer.keys, layer.values, number)
    with pytest.raises(ValueError, match="inside a video"):
        model.generate(**whole, retention_ratio=0.25, past_key_values=bare, **STEP)


@pytest.mark.parametrize("conversation", ["a new video", "new images side by side"])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_an_uncompressed_turn(family, conversation):
    """A stock turn, then a compressed one: from its cache, given the whole conversation's pixels."""
    stock, model = wrapped(family)
    talk = Conversation(stock, CONVERSATIONS[conversation])
    talk.turn(0)
    first = model.generate(**talk.inputs, retention_ratio=1.0, **STEP)
    start, new, later = talk.turn(1, first.sequences)
    if BY_NAME[family].mrope:
        with pytest.raises(ValueError, match="not those of the whole conversation"):
            model.generate(**later, retention_ratio=0.25, past_key_values=first.past_key_values, **STEP)
    kept = model.compress(**new, retention_ratio=0.25, compressor="uniform").kept_indices + start
    kept = torch.cat([torch.arange(start)[None], kept], dim=1)
    ours = model.generate(
        **talk.inputs, retention_ratio=0.25, compressor="uniform", past_key_values=first.past_key_values, **STEP
    )
    reference = stock.generate(**masked_inputs(stock, talk.inputs, kept), **STEP)
    assert torch.equal(ours.sequences, reference.sequences)


def test_a_cache_that_knows_no_linear_attention():
    stock = stock_model("qwen3_5")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with pytest.raises(ValueError, match="made without a config, and does not know which layers are linear attention"):
        model.generate(
            **prompt_inputs(stock, [[3, Video(), 6]]), retention_ratio=0.25, past_key_values=DynamicCache(), **STEP
        )
