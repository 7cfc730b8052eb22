"""The table of what `generate` does with what it is given: one row of the design, one test or more."""

import numpy as np
import pytest
import torch
from helpers.families.base import PAD
from helpers.models import (
    FAMILIES,
    PROMPTS,
    RAGGED,
    TWO_VIDEOS,
    Video,
    family_of,
    masked_inputs,
    prompt_inputs,
    skip_unless_served,
    skip_unless_split,
    stock_inputs,
    stock_model,
    wrapped,
)
from transformers import DynamicCache, GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import Attention, CaCoVid, Compressor, Random, Uniform, resolve_compressor


def masked(stock, model, inputs, ratio=0.25):
    return masked_inputs(stock, inputs, model.compress(**inputs, retention_ratio=ratio).kept_indices)


@pytest.fixture(params=FAMILIES)
def case(request):
    stock, model = wrapped(request.param)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    return stock, model, inputs


# ------------------------------------------------------------------ lengths


LENGTHS = {
    "max_length": lambda length: dict(max_length=length + 4),
    "max_length in a config": lambda length: dict(
        generation_config=GenerationConfig(max_length=length + 4, do_sample=False, pad_token_id=PAD)
    ),
    "max_new_tokens": lambda length: dict(max_new_tokens=4),
    "max_new_tokens over max_length": lambda length: dict(max_new_tokens=4, max_length=length + 9),
    "neither": lambda length: dict(),
    "static cache, max_length": lambda length: dict(max_length=length + 4, cache_implementation="static"),
    "static cache, neither": lambda length: dict(cache_implementation="static"),
}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_lengths_count_the_callers_prompt(case, lengths):
    stock, model, inputs = case
    settings = LENGTHS[lengths](inputs["input_ids"].shape[1])
    if "generation_config" not in settings:
        settings["do_sample"] = False
    ours = model.generate(**inputs, retention_ratio=0.25, **settings)
    assert ours.shape[1] == inputs["input_ids"].shape[1] + (20 if "neither" in lengths else 4)
    assert torch.equal(ours, stock.generate(**masked(stock, model, inputs), **settings))


def test_max_length_of_the_backbones_generation_config(case):
    stock, model, inputs = case
    stock.generation_config.max_length = inputs["input_ids"].shape[1] + 3
    assert model.generate(**inputs, retention_ratio=0.25, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("setting", ["min_length", "min_new_tokens"])
def test_min_length_counts_the_callers_prompt(case, setting):
    """The likeliest first token is made the end of text: without a minimum generation stops at once."""
    stock, model, inputs = case
    length = inputs["input_ids"].shape[1]
    first = model.generate(**inputs, retention_ratio=0.25, do_sample=False, max_new_tokens=1)[0, -1].item()
    settings = dict(eos_token_id=first, max_new_tokens=8, do_sample=False)
    assert model.generate(**inputs, retention_ratio=0.25, **settings).shape[1] == length + 1
    settings[setting] = length + 5 if setting == "min_length" else 5
    ours = model.generate(**inputs, retention_ratio=0.25, **settings)
    assert ours.shape[1] >= length + 5
    assert torch.equal(ours, stock.generate(**masked(stock, model, inputs), **settings))


def test_the_callers_generation_config_is_not_changed(case):
    stock, model, inputs = case
    chunk = 4 if family_of(stock).splits_prefill else None
    length = inputs["input_ids"].shape[1] + 8
    config = GenerationConfig(
        max_length=length, cache_implementation="static", prefill_chunk_size=chunk, pad_token_id=PAD
    )
    before = config.to_dict()
    model.generate(**inputs, retention_ratio=0.25, generation_config=config)
    assert config.to_dict() == before


# ------------------------------------------------------------------ callables see the caller's ids


class Record:
    def __init__(self):
        self.seen = []


class RecordingProcessor(Record, LogitsProcessor):
    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.clone())
        return scores


class StopAfterTwo(Record, StoppingCriteria):
    def __init__(self, prompt_length):
        super().__init__()
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.clone())
        return torch.full((len(input_ids),), input_ids[:, self.prompt_length :].shape[1] >= 2)


@pytest.mark.parametrize(
    "decoding",
    [dict(do_sample=False), dict(num_beams=2, do_sample=False), dict(num_return_sequences=2, do_sample=True)],
)
def test_criteria_and_processors_see_the_callers_ids(case, decoding):
    _, model, inputs = case
    length = inputs["input_ids"].shape[1]
    processor, criterion, prefixes = RecordingProcessor(), StopAfterTwo(length), []

    def allowed(batch, ids):
        prefixes.append(ids)
        return list(range(5, 100))

    model.generate(
        **inputs,
        retention_ratio=0.25,
        max_new_tokens=6,
        logits_processor=LogitsProcessorList([processor]),
        stopping_criteria=StoppingCriteriaList([criterion]),
        prefix_allowed_tokens_fn=allowed,
        **decoding,
    )
    assert len(processor.seen) in (2, 3)
    for ids in [row for seen in processor.seen + criterion.seen for row in seen] + prefixes:
        assert torch.equal(ids[:length], inputs["input_ids"][0])


# ------------------------------------------------------------------ calling conventions of stock


def test_positional_prompt(case):
    _, model, inputs = case
    settings = dict(retention_ratio=0.25, max_new_tokens=4, do_sample=False)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(model.generate(inputs["input_ids"], **rest, **settings), model.generate(**inputs, **settings))
    with pytest.raises(ValueError, match="given twice"):
        model.generate(inputs["input_ids"], **inputs, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_attention_mask_is_inferred_as_in_stock(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, RAGGED)
    settings = dict(max_new_tokens=4, do_sample=False)
    rest = {name: value for name, value in inputs.items() if name != "attention_mask"}
    for ratio in (0.25, 1.0):
        assert torch.equal(
            model.generate(**rest, retention_ratio=ratio, **settings),
            model.generate(**inputs, retention_ratio=ratio, **settings),
        )


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize("family", FAMILIES)
def test_missing_attention_mask_knows_the_calls_own_padding(family, how):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, RAGGED)
    expected = model.generate(**inputs, retention_ratio=0.25, max_new_tokens=4, do_sample=False)
    stock.generation_config.pad_token_id = None
    rest = {name: value for name, value in inputs.items() if name != "attention_mask"}
    settings = dict(max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    if how == "config":
        settings = dict(
            generation_config=GenerationConfig(**settings, suppress_tokens=stock.generation_config.suppress_tokens)
        )
    assert torch.equal(model.generate(**rest, retention_ratio=0.25, **settings), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_position_ids_of_one_row_serve_a_batch(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, [PROMPTS["one video"][0]] * 2)
    positions = masked_inputs(stock, inputs, inputs["input_ids"] * 0)["position_ids"]
    with torch.no_grad():
        whole = model(**inputs, position_ids=positions, retention_ratio=0.25).logits
        one_row = model(**inputs, position_ids=positions[..., :1, :], retention_ratio=0.25).logits
    assert torch.equal(whole, one_row)


def test_missing_token_types_give_stock_positions():
    stock, model = wrapped("qwen2_5_vl")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    types = inputs.pop("mm_token_type_ids")
    settings = dict(max_new_tokens=4, do_sample=False)
    compressed = model.compress(**inputs, retention_ratio=0.25)
    mask = torch.zeros_like(inputs["attention_mask"])
    mask[0, compressed.kept_indices[0]] = 1
    positions = torch.arange(mask.shape[1]).expand(4, 1, -1)
    reference = stock.generate(
        **{**stock_inputs(stock, inputs), "attention_mask": mask, "position_ids": positions}, **settings
    )
    assert torch.equal(model.generate(**inputs, retention_ratio=0.25, **settings), reference)
    assert torch.equal(
        model.generate(**inputs, retention_ratio=1.0, **settings),
        stock.generate(**stock_inputs(stock, inputs), **settings),
    )
    with_types = model.compress(**inputs, mm_token_type_ids=types, retention_ratio=0.25)
    assert not torch.equal(with_types.position_ids, compressed.position_ids)


def test_return_dict_in_generate(case):
    stock, model, inputs = case
    settings = dict(
        max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, output_scores=True
    )
    ours = model.generate(**inputs, retention_ratio=0.25, output_hidden_states=True, **settings)
    reference = stock.generate(**masked(stock, model, inputs), **settings)
    assert torch.equal(ours.sequences, reference.sequences)
    for a, b in zip(ours.logits, reference.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
    kept = model.compress(**inputs, retention_ratio=0.25).input_ids.shape[1]
    assert ours.past_key_values.get_seq_length() == kept + 3
    assert ours.hidden_states[0][0].shape[1] == kept


def test_default_ratio_comes_from_the_config():
    stock = stock_model("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    settings = dict(max_new_tokens=4, do_sample=False)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, retention_ratio=0.25)
    keeps_all = CaCoVidForConditionalGeneration.from_backbone(stock, policy=model.policy)
    assert torch.equal(
        model.generate(**inputs, **settings), keeps_all.generate(**inputs, retention_ratio=0.25, **settings)
    )
    assert torch.equal(
        keeps_all.generate(**inputs, **settings), stock.generate(**stock_inputs(stock, inputs), **settings)
    )
    assert torch.equal(
        model.generate(**inputs, retention_ratio=1.0, **settings),
        stock.generate(**stock_inputs(stock, inputs), **settings),
    )


@pytest.mark.parametrize("ratios", [[0.5, 0.1], (1.0, 0.1), torch.tensor([0.25, 1.0]), np.array([0.25, 0.5])])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_ratio_a_video(family, ratios):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    compressed = model.compress(**inputs, retention_ratio=ratios)
    for video, ratio in zip(compressed.videos, ratios, strict=True):
        assert video.keep.sum() == max(1, int(float(ratio) * video.span.num_tokens + 1e-9))
    ours = model.generate(**inputs, retention_ratio=ratios, max_new_tokens=4, do_sample=False)
    reference = stock.generate(
        **masked_inputs(stock, inputs, compressed.kept_indices), max_new_tokens=4, do_sample=False
    )
    assert torch.equal(ours, reference)


# ------------------------------------------------------------------ what is refused


REFUSED = {
    "assistant model": lambda m: (
        dict(assistant_model=m),
        "assistant_model does not work with compressed video tokens: .* retention_ratio=1.0",
    ),
    "prompt lookup": lambda m: (dict(prompt_lookup_num_tokens=3), "prompt_lookup_num_tokens=3 does not work"),
    "paged cache": lambda m: (dict(cache_implementation="paged"), "cache_implementation='paged' does not work"),
    "quantised cache": lambda m: (
        dict(cache_implementation="quantized"),
        "cache_implementation='quantized' does not work",
    ),
    "offloaded cache": lambda m: (
        dict(cache_implementation="offloaded"),
        "cache_implementation='offloaded' does not work",
    ),
    "guidance": lambda m: (dict(guidance_scale=2.0), "guidance_scale=2.0 does not work"),
    "negative prompt": lambda m: (
        dict(negative_prompt_ids=torch.ones(1, 2).long()),
        "negative_prompt_ids does not work",
    ),
    "token healing": lambda m: (dict(token_healing=True), "token_healing=True does not work"),
    "encoder penalty": lambda m: (dict(encoder_repetition_penalty=1.5), "encoder_repetition_penalty=1.5 does not work"),
    "encoder n-grams": lambda m: (dict(encoder_no_repeat_ngram_size=2), "encoder_no_repeat_ngram_size=2 does not work"),
    "custom loop": lambda m: (dict(custom_generate="someone/loop"), "custom_generate does not work"),
    "contrastive search": lambda m: (dict(penalty_alpha=0.6, top_k=4), "'contrastive_search' does not work"),
    "group beams": lambda m: (
        dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
        "'group_beam_search' does not work",
    ),
    "layer contrast": lambda m: (dict(dola_layers="low"), "'dola_generation' does not work"),
    "embeddings": lambda m: (dict(inputs_embeds=torch.zeros(1, 2, 64)), "inputs_embeds does not work"),
    "encoded vision": lambda m: (dict(mm_encoder_outputs={}), "mm_encoder_outputs does not work"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_refused_arguments_name_reason_and_way_round(refused):
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    arguments, message = REFUSED[refused](stock)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, retention_ratio=0.25, max_new_tokens=2, **arguments)
    # The same setting in a config object is refused alike.
    known = GenerationConfig().to_dict()
    if set(arguments) <= set(known):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, retention_ratio=0.25, generation_config=GenerationConfig(**arguments))


def test_refused_chunk_size():
    stock, model = wrapped("llava_onevision")
    with pytest.raises(ValueError, match="prefill_chunk_size=-1 is not positive"):
        model.generate(**prompt_inputs(stock, PROMPTS["one video"]), retention_ratio=0.25, prefill_chunk_size=-1)


# ------------------------------------------------------------------ methods


@pytest.mark.parametrize(
    "method",
    [
        "cacovid",
        "random",
        "uniform",
        Random(seed=3),
        CaCoVid(1.0, scope="video"),
        CaCoVid(1.0, scope="tokens"),
        Uniform(),
        "attention",
        Attention(0, "last"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_meets_the_budget_and_the_oracle(family, method):
    skip_unless_served(family, method)
    stock, model = wrapped(family)
    for rows in (RAGGED, TWO_VIDEOS):
        inputs = prompt_inputs(stock, rows)
        for ratio in (0.1, 0.25, 0.9):
            compressed = model.compress(**inputs, retention_ratio=ratio, compressor=method)
            for video in compressed.videos:
                assert video.keep.sum() == max(1, int(ratio * video.span.num_tokens + 1e-9))
                assert (video.token_scores is not None) == (
                    type(resolve_compressor(method)).score is not Compressor.score
                )
        ours = model.generate(**inputs, retention_ratio=0.1, compressor=method, max_new_tokens=4, do_sample=False)
        kept = model.compress(**inputs, retention_ratio=0.1, compressor=method).kept_indices
        assert torch.equal(
            ours, stock.generate(**masked_inputs(stock, inputs, kept), max_new_tokens=4, do_sample=False)
        )
        # The divergence gate: what is dropped matters.
        assert not torch.equal(ours, stock.generate(**stock_inputs(stock, inputs), max_new_tokens=4, do_sample=False))


class Sloppy(Uniform):
    """Off by one."""

    def select(self, prompt, span, scores, budget):
        keep = super().select(prompt, span, scores, budget)
        keep.view(-1)[keep.flatten().nonzero()[0]] = False
        return keep


def test_a_method_that_misses_its_budget_is_caught():
    stock, model = wrapped("llava_onevision")
    with pytest.raises(ValueError, match=r"compressor 'uniform' kept 3 tokens .* the budget is 4"):
        model.compress(**prompt_inputs(stock, PROMPTS["one video"]), retention_ratio=0.25, compressor=Sloppy())


def test_random_is_seeded():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    keeps = [
        model.compress(**inputs, retention_ratio=0.5, compressor=Random(seed)).videos[0].keep for seed in (0, 0, 1)
    ]
    assert torch.equal(keeps[0], keeps[1])
    assert not torch.equal(keeps[0], keeps[2])


def test_scores_have_the_videos_shape(case):
    _, model, inputs = case
    (video,) = model.compress(**inputs, retention_ratio=0.25).videos
    frames, height, width = video.grid
    assert video.keep.shape == video.token_scores.shape == (frames, height * width)
    assert video.frame_scores.shape == (frames,)
    assert video.keep.dtype == torch.bool


# ------------------------------------------------------------------ forward


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_batch(family, padding_side):
    """Loss of the answers of a ragged batch: equal to the oracle's, whichever side is padded."""
    stock, model = wrapped(family)
    # A word in front of each answer: a video token there may be dropped, and the last one that stays predicts the answer instead.
    inputs = prompt_inputs(stock, [*RAGGED[:2], [2, Video(), 3]], padding_side=padding_side)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, mask in enumerate(inputs["attention_mask"]):
        answer = mask.nonzero()[-2:, 0]
        labels[row, answer] = inputs["input_ids"][row, answer]
    outputs = model(**inputs, labels=labels, retention_ratio=0.25)
    places = outputs.kept_indices
    with torch.no_grad():
        reference = stock(**masked_inputs(stock, inputs, places), labels=labels)
    torch.testing.assert_close(outputs.loss, reference.loss, atol=1e-4, rtol=1e-4)
    for row in range(3):
        kept = places[row] >= 0
        torch.testing.assert_close(
            outputs.logits[row, kept][-2:], reference.logits[row, places[row, kept]][-2:], atol=3e-4, rtol=1e-3
        )
    outputs.loss.backward()
    assert all(bool(weight.grad.any()) for weight in stock.get_decoder().layers[0].mlp.parameters())
    # A hard selection: the policy gets no gradient.
    assert all(weight.grad is None for weight in model.policy.parameters())


def test_forward_returns_tuples_and_refuses_caches(case):
    _, model, inputs = case
    with torch.no_grad():
        as_tuple = model(**inputs, retention_ratio=0.25, return_dict=False)
        outputs = model(**inputs, retention_ratio=0.25)
    assert torch.equal(as_tuple[0], outputs.logits)
    assert torch.equal(as_tuple[-1], outputs.kept_indices)
    with pytest.raises(ValueError, match=r"(cache|past_key_values) does not work with compressed video tokens"):
        model(**inputs, retention_ratio=0.25, past_key_values=DynamicCache())


@pytest.mark.parametrize(
    "setting", [dict(cache_implementation="static"), dict(prefill_chunk_size=4), dict(num_beams=2)]
)
def test_settings_of_the_backbones_generation_config(case, setting):
    """What stands in the backbone's own generation config works like an argument of the call."""
    stock, model, inputs = case
    skip_unless_split(stock.config.model_type, setting)
    expected = model.generate(**inputs, retention_ratio=0.25, max_new_tokens=4, do_sample=False, **setting)
    for name, value in setting.items():
        setattr(stock.generation_config, name, value)
    assert torch.equal(model.generate(**inputs, retention_ratio=0.25, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "expansion", [dict(num_beams=3, do_sample=False), dict(num_return_sequences=3, do_sample=True)]
)
def test_one_prefill_for_all_beams_and_sequences(family, expansion):
    """Scored, gathered and prefilled once a prompt; the same tokens as from a prefill of every row."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    prompt = model.compress(**inputs, retention_ratio=0.25)
    torch.manual_seed(3)
    expected = stock.generate(**prompt.model_inputs(), max_new_tokens=4, **expansion)[:, -4:]
    widths, scored = [], []
    handles = [
        stock.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: widths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
        model.policy.register_forward_pre_hook(lambda *_: scored.append(1)),
    ]
    torch.manual_seed(3)
    found = model.generate(**inputs, retention_ratio=0.25, max_new_tokens=4, **expansion)[:, -4:]
    for handle in handles:
        handle.remove()
    rows, length = prompt.inputs_embeds.shape[:2]
    assert scored == [1]
    assert (rows, length - 1) in widths  # all but the last position, once a prompt
    assert all(width == 1 for number, width in widths if number > rows)
    assert torch.equal(found, expected)


def test_the_ratio_of_the_models_generation_config(case):
    """Behind an argument and a given config, before the checkpoint's default."""
    _, model, inputs = case
    how = dict(max_new_tokens=8, do_sample=False)
    expected = {ratio: model.generate(**inputs, **how, retention_ratio=ratio).tolist() for ratio in (0.25, 0.5, 1.0)}
    assert len({str(tokens) for tokens in expected.values()}) == 3
    model.config.retention_ratio = 0.5
    model.generation_config.retention_ratio = 0.25
    assert model.generate(**inputs, **how).tolist() == expected[0.25]
    assert model.generate(**inputs, **how, retention_ratio=1.0).tolist() == expected[1.0]
    given = GenerationConfig(**how, retention_ratio=1.0)
    assert model.generate(**inputs, generation_config=given).tolist() == expected[1.0]
    del model.generation_config.retention_ratio
    assert model.generate(**inputs, **how).tolist() == expected[0.5]
