"""A call that cuts the language model between its layers: what its ratio means, what is refused, and that no other call or thread notices."""

import sys
import threading

import pytest
import torch
from helpers.cut_models import BOTH, GREEDY, LAYERS, number_of_hooks, wrapped
from helpers.models import FAMILIES, PROMPTS, Video, prompt_inputs, stock_inputs
from transformers import DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from cacovid_hf.compressors import Attention, FastV, FrameFusion

# ------------------------------------------------------------------ one call, one thread


@pytest.mark.spread(2)
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_output_differs_and_the_stock_model_is_left_as_it_was(family, method):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    with torch.no_grad():
        before = stock(**stock_inputs(stock, inputs)).logits
        ours = model(**inputs, retention_ratio=0.3, compressor=BOTH[method]).logits
        model.generate(**inputs, retention_ratio=0.3, compressor=BOTH[method], **GREEDY)
        after = stock(**stock_inputs(stock, inputs)).logits
    assert (ours[:, -1] - before[:, -1]).abs().amax(dim=-1).min() > 0.1
    assert torch.equal(before, after)
    assert number_of_hooks(stock) == 0


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", BOTH)
def test_an_error_in_the_middle_detaches_the_hooks(method):
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])

    def fail(module, args):
        raise Interrupted

    handle = stock.get_decoder().layers[3].mlp.register_forward_pre_hook(fail)
    with pytest.raises(Interrupted):
        model.generate(**inputs, retention_ratio=0.3, compressor=BOTH[method], **GREEDY)
    handle.remove()
    assert number_of_hooks(stock) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_share_a_model_that_is_being_cut(family):
    stock, model = wrapped(family)
    batch, single = prompt_inputs(stock, PROMPTS["ragged batch"]), prompt_inputs(stock, PROMPTS["two videos"], seed=3)
    tasks = {
        "fastv": lambda: model.generate(**batch, retention_ratio=0.3, compressor=BOTH["fastv"], **GREEDY),
        "framefusion": lambda: model.generate(**single, retention_ratio=0.3, compressor=BOTH["framefusion"], **GREEDY),
        "attention": lambda: model.generate(**batch, retention_ratio=0.3, compressor=Attention(), **GREEDY),
        "stock": lambda: stock.generate(**stock_inputs(stock, batch), **GREEDY),
        "stock forward": lambda: stock(**stock_inputs(stock, single)).logits,
    }
    with torch.no_grad():
        expected = {name: task() for name, task in tasks.items()}
    failures, start = [], threading.Barrier(len(tasks))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    @torch.no_grad()
    def work(name):
        start.wait()
        for _ in range(6):
            try:
                if not torch.equal(tasks[name](), expected[name]):
                    failures.append(name)
            except Exception as error:
                failures.append(f"{name}: {error!r}")
                return

    threads = [threading.Thread(target=work, args=(name,)) for name in tasks]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert number_of_hooks(stock) == 0


class CallsTheModelAgain(LogitsProcessor):
    """Asks the stock model something else in the middle of a generation, in the same thread."""

    def __init__(self, stock, inputs):
        self.stock, self.inputs, self.seen = stock, inputs, []

    def __call__(self, input_ids, scores):
        self.seen.append(self.stock.generate(**stock_inputs(self.stock, self.inputs), **GREEDY))
        return scores


@pytest.mark.parametrize("method", BOTH)
def test_another_call_between_two_steps_is_not_cut(method):
    stock, model = wrapped("qwen2_5_vl")
    inputs, other = prompt_inputs(stock, PROMPTS["one video"]), prompt_inputs(stock, PROMPTS["two videos"])
    expected = model.generate(**inputs, retention_ratio=0.3, compressor=BOTH[method], **GREEDY)
    alone = stock.generate(**stock_inputs(stock, other), **GREEDY)
    again = CallsTheModelAgain(stock, other)
    ours = model.generate(
        **inputs, retention_ratio=0.3, compressor=BOTH[method], logits_processor=LogitsProcessorList([again]), **GREEDY
    )
    assert torch.equal(ours, expected)
    assert len(again.seen) == 4
    assert all(torch.equal(seen, alone) for seen in again.seen)


# ------------------------------------------------------------------ what a ratio means


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ratio_is_the_mean_over_the_layers(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, [[2, Video(8), 5]])
    (video,) = model.compress(**inputs, retention_ratio=0.5).videos
    total = video.span.num_tokens
    for method in (FastV(layer=1), FastV(layer=2), FrameFusion(), FrameFusion(0.1), FrameFusion(0.95)):
        for ratio in (0.45, 0.6, 0.9):
            seen = model(**inputs, retention_ratio=ratio, compressor=method).layer_tokens
            assert seen.shape == (LAYERS, 1)
            # Whole tokens in every layer.
            assert abs(seen.float().mean().item() / total - ratio) <= 1 / total, (method, ratio)
    kept = model(**inputs, retention_ratio=0.25, compressor=FastV(layer=3, ratio_of="kept")).layer_tokens[:, 0]
    assert kept.tolist() == [total] * 3 + [total // 4] * 2


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.6, 1.0])
def test_framefusion_meets_any_ratio_at_any_depth(threshold, layers):
    stock, model = wrapped("qwen2_5_vl", num_hidden_layers=layers)
    inputs = prompt_inputs(stock, [[2, Video(6, 3, 3), 5]])
    for ratio in (0.001, 0.02, 0.1, 0.3, 0.5, 0.8, 0.99):
        seen = model(**inputs, retention_ratio=ratio, compressor=FrameFusion(threshold)).layer_tokens
        # Whole tokens in every layer, at least one.
        assert abs(seen.float().mean().item() - max(1.0, ratio * 54)) <= 1, (ratio, seen)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_compute_what_is_left(family, method):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    widths = {}
    for index, layer in enumerate(stock.get_decoder().layers):
        for name, module in (("attention", layer.self_attn.v_proj), ("mlp", layer.mlp)):
            module.register_forward_hook(
                lambda _module, args, _out, key=(name, index): widths.setdefault(key, []).append(args[0].shape[1])
            )
    # Nothing alike enough to be merged: FrameFusion drops in layer 0.
    settings = dict(retention_ratio=0.3, compressor=FrameFusion(0.99) if method == "framefusion" else BOTH[method])
    seen = model(**inputs, **settings).layer_tokens[:, 0]
    (video,) = model.compress(**inputs, retention_ratio=0.3).videos
    rest = inputs["input_ids"].shape[1] - video.span.num_tokens
    assert [widths["attention", index] for index in range(LAYERS)] == [[rest + n] for n in seen.tolist()]
    # FrameFusion drops between a layer's attention and its MLP.
    behind = [*seen[1:].tolist(), int(seen[-1])] if method == "framefusion" else seen.tolist()
    assert [widths["mlp", index] for index in range(LAYERS)] == [[rest + n] for n in behind]
    assert len(set(seen.tolist())) > 1


def test_what_enters_the_language_model():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    compressed = model.compress(**inputs, retention_ratio=0.5, compressor="fastv")
    assert all(video.keep.all() for video in compressed.videos)
    merged = model.compress(**inputs, retention_ratio=0.3, compressor=FrameFusion(0.1))
    outputs = model(**inputs, retention_ratio=0.3, compressor=FrameFusion(0.1))
    assert [int(video.keep.sum()) for video in merged.videos] == outputs.layer_tokens[0].tolist()
    for row, places in enumerate(outputs.kept_indices):
        assert set(places.tolist()) <= {-1, *merged.kept_indices[row].tolist()}


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_goes_the_hooks_change_nothing(family, method):
    """The call of ratio 1.0 is the stock one; here its prompt goes through the hooks."""
    stock, model = wrapped(family)
    prompt = model.compress(**prompt_inputs(stock, PROMPTS["ragged batch"]), retention_ratio=1.0)
    inputs = {name: getattr(prompt, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}
    with torch.no_grad(), model.family.handed_over(stock, prompt.kept_indices, prompt.extra):
        expected = stock(**inputs).logits
        with BOTH[method].inside(model, prompt, [1.0] * len(prompt.videos)) as record:
            assert torch.equal(stock(**inputs).logits, expected)
    assert len(record.layer_tokens) == LAYERS


@pytest.mark.parametrize("family", FAMILIES)
def test_one_ratio_a_video(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["two videos"])
    for method in (FastV(ratio_of="kept"), FrameFusion(0.1)):
        seen = model(**inputs, retention_ratio=[1.0, 0.4], compressor=method).layer_tokens
        assert len(set(seen[:, 0].tolist())) == 1
        assert seen[-1, 1] < seen[0, 1] or seen[0, 1] < seen[0, 0]


@pytest.mark.parametrize("method", BOTH)
def test_no_labels_and_no_caches_in_forward(method):
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    for extra in (dict(labels=inputs["input_ids"]), dict(use_cache=True)):
        with pytest.raises(ValueError, match=r"(labels|use_cache=True) does not work with compressor"):
            model(**inputs, retention_ratio=0.3, compressor=BOTH[method], **extra)


BAD = [
    (lambda: FastV(layer=0), "layer=0 is not a layer to drop tokens before"),
    (lambda: FastV(layer=True), "layer=True is not a layer"),
    (lambda: FastV(ratio_of="all"), "ratio_of='all' is unknown: choose one of 'layers', 'kept'"),
    (
        lambda: FastV(layer=2).kept_ratio(0.3, 5),
        "retention_ratio=0.3 cannot be met as a mean over 5 layers.*more than 0.400",
    ),
    (lambda: FastV(layer=5).kept_ratio(0.5, 5), "layer=5 is behind the last of the language model's 5 layers"),
    (lambda: FrameFusion(similarity=1.5), r"similarity=1.5 is outside \[-1, 1\]"),
    (lambda: FrameFusion(least_merged=None), "least_merged=None is outside"),
    (lambda: Attention(layer=-1), "layer=-1 is not a layer"),
    (lambda: Attention(query="all"), "query='all' is unknown: choose one of 'last', 'question'"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", BOTH)
def test_gradient_checkpointing_is_refused(method):
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="Gradient checkpointing does not work with compressor"):
        model(**inputs, retention_ratio=0.8, compressor=BOTH[method])
    model.gradient_checkpointing_disable()
    model(**inputs, retention_ratio=0.8, compressor=BOTH[method]).logits.sum().backward()


def test_sliding_windows_are_refused():
    stock, model = wrapped("llava_onevision", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    with pytest.raises(ValueError, match="layers of sliding attention"):
        model.generate(**prompt_inputs(stock, PROMPTS["one video"]), retention_ratio=0.3, compressor=BOTH["fastv"])


# ------------------------------------------------------------------ refused

REFUSED = {
    "static cache": (
        dict(cache_implementation="static"),
        "cache_implementation='static' does not work with compressor",
    ),
    "prefill in chunks": (dict(prefill_chunk_size=4), "prefill_chunk_size=4 does not work with compressor"),
    "no cache": (dict(use_cache=False), "use_cache=False does not work with compressor"),
    "auto": (dict(retention_ratio="auto"), "retention_ratio='auto' does not work with|no scores to decide a budget by"),
    "a cache": (dict(past_key_values=DynamicCache()), "(cache|past_key_values) does not work with compressor"),
}


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("method", BOTH)
def test_refused_inside_the_language_model(method, refused):
    stock, model = wrapped("llava_onevision")
    arguments, message = REFUSED[refused]
    settings = {"retention_ratio": 0.3, **arguments}
    with pytest.raises(ValueError, match=message):
        model.generate(**prompt_inputs(stock, PROMPTS["one video"]), compressor=BOTH[method], **settings)
    assert number_of_hooks(stock) == 0
