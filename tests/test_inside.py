"""Methods that read or cut the language model between its layers, against a full-width reference that drops nothing and masks or merges by hand."""

import itertools
import sys
import threading

import flash_stand_in
import pytest
import torch
from models import FAMILIES, PROMPTS, Image, Video, prompt_inputs, stock_model
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import Attention, FastV, FrameFusion
from cacovid_hf.compressors.attention import video_attention
from cacovid_hf.compressors.framefusion import chain_similarity, fraction_to_remove, merged_states

LAYERS = 5
GREEDY = dict(max_new_tokens=4, do_sample=False)


def wrapped(family, attention="sdpa", **text):
    stock = stock_model(family, attention, **{"num_hidden_layers": LAYERS, **text})
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock)


def embedded(model, inputs):
    """The prompt as the language model receives it."""
    with torch.no_grad():
        return model.embed(**inputs)


class Reference:
    """One row of a prompt, all of it in every layer, computed from the stock model's public modules with explicit masks."""

    def __init__(self, model, prompt, row):
        self.decoder, self.head = model.get_decoder(), model.backbone.lm_head
        valid = prompt.layout.valid[row]
        self.embeds = prompt.inputs_embeds[row : row + 1, valid]
        self.positions = prompt.position_ids[..., row : row + 1, valid]
        if self.positions.ndim == 3:
            self.positions = self.positions[1:]
        self.length = self.embeds.shape[1]
        old = valid.nonzero()[:, 0]
        self.videos = [
            (torch.searchsorted(old, s.positions), s.tokens_per_frame) for s in prompt.layout.videos if s.row == row
        ]

    def greedy(self, method, steps):
        """Tokens and their logits; nothing is cached, every step runs the whole sequence."""
        return self.forced(method, [None] * steps)

    @torch.no_grad()
    def forced(self, method, tokens):
        """Logits in front of each of `tokens`, the likeliest where None is given."""
        logits = []
        for token in tokens:
            logits.append(self.forward(method))
            if token is None:
                likely = logits[-1].clone()
                likely[[110, 111]] = -torch.inf
                token = likely.argmax()
            self.positions = torch.cat([self.positions, self.positions[..., -1:] + 1], dim=-1)
            self.embeds = torch.cat([self.embeds, self.decoder.embed_tokens(token[None, None])], dim=1)
        return torch.stack(logits)

    def forward(self, method):
        """Logits of the last token."""
        states, size = self.embeds.clone(), self.embeds.shape[1]
        rope = self.decoder.rotary_emb(states, self.positions)
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        alive = torch.ones(size, dtype=torch.bool)
        self.steps = [method.start(self, states[0], alive, video) for video in range(len(self.videos))]
        self.seen, weights = [], None
        for index, layer in enumerate(self.decoder.layers):
            if isinstance(method, MaskedFastV) and index == method.layer:
                method.mask(self, weights, alive)
            self.seen.append([int(alive[places].sum()) for places, _ in self.videos])
            mask = torch.zeros(size, size).masked_fill(~(causal & alive), torch.finfo().min)[None, None]
            attended, weights = layer.self_attn(
                hidden_states=layer.input_layernorm(states), position_embeddings=rope, attention_mask=mask
            )
            states = states + attended
            if isinstance(method, MergedByHand) and index + 1 < LAYERS:
                for video in range(len(self.videos)):
                    method.step(self, states[0], alive, video, weights)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        self.alive = alive
        return self.head(self.decoder.norm(states))[0, -1]


class MaskedFastV:
    """FastV in its masking form."""

    def __init__(self, layer, kept):
        self.layer, self.kept = layer, kept

    def start(self, reference, states, alive, video):
        return None

    def mask(self, reference, weights, alive):
        row = weights[0, :, reference.length - 1].mean(dim=0)
        for places, _ in reference.videos:
            budget = max(1, int(self.kept * len(places) + 1e-9))
            order = sorted(range(len(places)), key=lambda i: (-row[places[i]].item(), i))
            alive[places[order[budget:]]] = False


class MergedByHand:
    """FrameFusion, token by token; dropped tokens stay in the sequence, masked."""

    def __init__(self, ratio, threshold=0.6, least=0.1):
        self.ratio, self.threshold, self.least = ratio, threshold, least

    def needed(self, removed):
        left, total = 1.0, 0.0
        for fraction in removed:
            left *= 1 - fraction
            total += left
        remain = LAYERS * self.ratio - total
        return min(1.0, max(0.0, 1 - remain / ((LAYERS - len(removed)) * left)))

    def start(self, reference, states, alive, video):
        state = {"removed": [], "phase": "merge"}
        reference.steps = [*getattr(reference, "steps", [])[:video], state]
        self.merge(reference, states, alive, video, state)
        return state

    def step(self, reference, states, alive, video, weights):
        state = reference.steps[video]
        if state["phase"] == "merge":
            self.merge(reference, states, alive, video, state)
        elif state["phase"] == "prune":
            places, _ = reference.videos[video]
            left = [p for p in places.tolist() if alive[p]]
            row = weights[0, :, reference.length - 1].mean(dim=0)
            count = max(1, round(len(left) * (1 - self.needed(state["removed"]))))
            for place in sorted(left, key=lambda p: (-row[p].item(), p))[count:]:
                alive[place] = False
            state["phase"], state["pruned"] = "done", True

    def merge(self, reference, states, alive, video, state):
        places, per_frame = reference.videos[video]
        chains = [[p for p in places[at::per_frame].tolist() if alive[p]] for at in range(per_frame)]
        similarity = {
            here: F.cosine_similarity(states[here], states[before], dim=0).item()
            for chain in chains
            for before, here in itertools.pairwise(chain)
        }
        number = sum(map(len, chains))
        needed = self.needed(state["removed"])
        merged = {place for place, value in similarity.items() if value >= self.threshold}

        def may_go_on(count):
            later = self.needed([*state["removed"], count / number])
            return len(state["removed"]) + 1 < LAYERS and (number - count) * (1 - later) >= 1 - 1e-9

        if len(merged) / number < needed and may_go_on(len(merged)):
            phase = "prune" if len(merged) / number < self.least else "merge"
        elif int(needed * number + 1e-9) > len(similarity) and may_go_on(len(similarity)):
            merged, phase = set(similarity), "prune"
        else:
            count = min(number - 1, int(needed * number + 1e-9))
            everything = {place: similarity.get(place, -2.0) for chain in chains for place in chain}
            merged, phase = set(sorted(everything, key=lambda p: (-everything[p], p))[:count]), "done"
        for chain in chains:
            runs = []
            for place in chain:
                if place in merged and runs:
                    runs[-1].append(place)
                elif place not in merged:
                    runs.append([place])
            for run in runs:
                states[run[0]] = states[run].mean(dim=0)
        for place in merged:
            alive[place] = False
        state["removed"].append(len(merged) / number)
        state["phase"] = phase


RATIOS = (0.3, 0.6)
METHODS = {
    "fastv, kept": lambda ratio: (FastV(layer=2, ratio_of="kept"), MaskedFastV(2, ratio)),
    "fastv, layers": lambda ratio: (FastV(layer=1), MaskedFastV(1, (LAYERS * ratio - 1) / (LAYERS - 1))),
    "framefusion": lambda ratio: (FrameFusion(), MergedByHand(ratio)),
    "framefusion, low threshold": lambda ratio: (FrameFusion(0.1), MergedByHand(ratio, 0.1)),
    "framefusion, prune at once": lambda ratio: (FrameFusion(0.95), MergedByHand(ratio, 0.95)),
}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_equals_masking_and_merging_by_hand(family, prompt, method, ratio):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    compressor, by_hand = METHODS[method](ratio)
    ours = model.generate(
        **inputs,
        retention_ratio=ratio,
        compressor=compressor,
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    outputs = model(**inputs, retention_ratio=ratio, compressor=compressor)
    stock.set_attn_implementation("eager")
    embeds = embedded(model, inputs)
    seen = []
    for row in range(len(PROMPTS[prompt])):
        reference = Reference(model, embeds, row)
        expected = reference.greedy(by_hand, 4)
        found = torch.stack([step[row] for step in ours.logits])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        seen += torch.tensor(reference.seen).T.tolist()
    assert outputs.layer_tokens.T.tolist() == seen
    torch.testing.assert_close(outputs.logits[:, -1], ours.logits[0], atol=1e-4, rtol=1e-4)


def test_the_table_reaches_every_way_of_cutting():
    """Merging in several layers, dropping by attention, merging below the threshold, and batches whose rows keep different numbers."""
    ways = set()
    for family in FAMILIES:
        stock, model = wrapped(family)
        for prompt in ("one video", "ragged batch", "two videos"):
            inputs = prompt_inputs(stock, PROMPTS[prompt])
            embeds = embedded(model, inputs)
            stock.set_attn_implementation("eager")
            for threshold in (0.1, 0.6, 0.95):
                for ratio in RATIOS:
                    by_hand = MergedByHand(ratio, threshold)
                    for row in range(len(PROMPTS[prompt])):
                        reference = Reference(model, embeds, row)
                        with torch.no_grad():
                            reference.forward(by_hand)
                        ways |= {(len(state["removed"]) > 1, state["phase"]) for state in reference.steps}
                        ways |= {("dropped", state["pruned"]) for state in reference.steps if "pruned" in state}
    assert (True, "done") in ways  # merged in a layer, finished
    assert ("dropped", True) in ways  # by attention


# ------------------------------------------------------------------ decodings


DECODINGS = {
    "beams": dict(num_beams=3, num_return_sequences=2, do_sample=False),
    "several sequences": dict(num_return_sequences=3, do_sample=True, top_k=0),
    "beam sample": dict(num_beams=2, do_sample=True, top_k=0),
}
BOTH = {"fastv": FastV(layer=2, ratio_of="kept"), "framefusion": FrameFusion(0.1)}


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_prompt_share_its_cuts(family, method, decoding):
    """Every sequence of beams or samples has, at every step, the likelihood that its own tokens have after the prompt, read in one go."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    torch.manual_seed(0)
    outputs = model.generate(
        **inputs, retention_ratio=0.3, compressor=BOTH[method], max_new_tokens=4, return_dict_in_generate=True, output_logits=True,
        output_scores=True, **DECODINGS[decoding]
    )  # fmt: skip
    assert outputs.past_key_values is None
    length = inputs["input_ids"].shape[1]
    count = DECODINGS[decoding].get("num_return_sequences", 1)
    assert torch.equal(outputs.sequences[:, :length], inputs["input_ids"].repeat_interleave(count, dim=0))
    scores = model.backbone.compute_transition_scores(
        outputs.sequences, outputs.scores, getattr(outputs, "beam_indices", None), normalize_logits=True
    )
    embeds = embedded(model, inputs)
    by_hand = MaskedFastV(2, 0.3) if method == "fastv" else MergedByHand(0.3, 0.1)
    stock.set_attn_implementation("eager")
    for number, sequence in enumerate(outputs.sequences):
        reference = Reference(model, embeds, number // count)
        logits = reference.forced(by_hand, sequence[length:])
        logits[:, [110, 111]] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, sequence[length:, None])[:, 0]
        torch.testing.assert_close(scores[number], expected, atol=1e-3, rtol=1e-3)


REFUSED = {
    "static cache": (
        dict(cache_implementation="static"),
        "cache_implementation='static' does not work with compressor",
    ),
    "prefill in chunks": (dict(prefill_chunk_size=4), "prefill_chunk_size=4 does not work with compressor"),
    "no cache": (dict(use_cache=False), "use_cache=False does not work with compressor"),
    "auto": (dict(retention_ratio="auto"), "retention_ratio='auto' does not work with|no scores to decide a budget by"),
    "a cache": (dict(past_key_values=DynamicCache()), "past_key_values does not work with compressor"),
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


def number_of_hooks(stock):
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks)
        for name, module in stock.named_modules()
        if "language_model" in name
    )


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree(family, method, monkeypatch):
    stock, model = wrapped(family)
    for prompt in ("one video", "ragged batch"):
        inputs = prompt_inputs(stock, PROMPTS[prompt])
        settings = dict(retention_ratio=0.3, compressor=BOTH[method], **GREEDY)
        expected = model.generate(**inputs, **settings)
        eager, _ = wrapped(family, "eager")
        on_eager = CaCoVidForConditionalGeneration.from_backbone(eager, policy=model.policy)
        assert torch.equal(on_eager.generate(**inputs, **settings), expected)
        with monkeypatch.context() as patch:
            flash_stand_in.install(patch)
            flash, _ = wrapped(family)
            flash_stand_in.use_flash_attention(flash)
            on_flash = CaCoVidForConditionalGeneration.from_backbone(flash, policy=model.policy)
            assert torch.equal(on_flash.generate(**inputs, **settings), expected)


# ------------------------------------------------------------------ one call, one thread


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_output_differs_and_the_stock_model_is_left_as_it_was(family, method):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    with torch.no_grad():
        before = stock(**inputs).logits
        ours = model(**inputs, retention_ratio=0.3, compressor=BOTH[method]).logits
        model.generate(**inputs, retention_ratio=0.3, compressor=BOTH[method], **GREEDY)
        after = stock(**inputs).logits
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
        "stock": lambda: stock.generate(**batch, **GREEDY),
        "stock forward": lambda: stock(**single).logits,
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
        self.seen.append(self.stock.generate(**self.inputs, **GREEDY))
        return scores


@pytest.mark.parametrize("method", BOTH)
def test_another_call_between_two_steps_is_not_cut(method):
    stock, model = wrapped("qwen2_5_vl")
    inputs, other = prompt_inputs(stock, PROMPTS["one video"]), prompt_inputs(stock, PROMPTS["two videos"])
    expected = model.generate(**inputs, retention_ratio=0.3, compressor=BOTH[method], **GREEDY)
    alone = stock.generate(**other, **GREEDY)
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
        for name, module in (("attention", layer.self_attn.v_proj), ("mlp", layer.mlp.up_proj)):
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
    compressed = model.compress(**inputs, retention_ratio=0.3, compressor="fastv")
    assert all(video.keep.all() for video in compressed.videos)
    merged = model.compress(**inputs, retention_ratio=0.3, compressor=FrameFusion(0.1))
    outputs = model(**inputs, retention_ratio=0.3, compressor=FrameFusion(0.1))
    assert [int(video.keep.sum()) for video in merged.videos] == outputs.layer_tokens[0].tolist()
    for row, places in enumerate(outputs.kept_indices):
        assert set(places.tolist()) <= {-1, *merged.kept_indices[row].tolist()}


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
        with pytest.raises(ValueError, match="labels and use_cache=True do not work with compressor"):
            model(**inputs, retention_ratio=0.3, compressor=BOTH[method], **extra)


BAD = [
    (lambda: FastV(layer=0), "layer=0 is no layer to drop tokens before"),
    (lambda: FastV(layer=True), "layer=True is no layer"),
    (lambda: FastV(ratio_of="all"), "ratio_of='all' is unknown: choose one of 'layers', 'kept'"),
    (
        lambda: FastV(layer=2).kept_ratio(0.3, 5),
        "retention_ratio=0.3 cannot be met as a mean over 5 layers.*more than 0.400",
    ),
    (lambda: FastV(layer=5).kept_ratio(0.5, 5), "layer=5 is behind the last of the language model's 5 layers"),
    (lambda: FrameFusion(similarity=1.5), r"similarity=1.5 is outside \[-1, 1\]"),
    (lambda: FrameFusion(least_merged=None), "least_merged=None is outside"),
    (lambda: Attention(layer=-1), "layer=-1 is no layer"),
    (lambda: Attention(query="all"), "query='all' is unknown: choose one of 'last', 'question'"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sliding_windows_are_refused():
    stock, model = wrapped("llava_onevision", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    with pytest.raises(ValueError, match="layers of sliding attention"):
        model.generate(**prompt_inputs(stock, PROMPTS["one video"]), retention_ratio=0.3, compressor=BOTH["fastv"])


# ------------------------------------------------------------------ framefusion's parts


def test_the_budget_formula():
    """Published: prod of what is left, summed over the layers so far, is taken off layers times cost."""
    assert fraction_to_remove([], 0.3, 28) == pytest.approx(0.7)
    assert fraction_to_remove([0.5], 0.3, 28) == pytest.approx(1 - (28 * 0.3 - 0.5) / (27 * 0.5))
    assert fraction_to_remove([0.5, 0.2], 0.3, 28) == pytest.approx(1 - (28 * 0.3 - 0.5 - 0.4) / (26 * 0.4))
    assert fraction_to_remove([0.9], 0.3, 28) == 0.0
    assert fraction_to_remove([0.0, 0.0], 0.05, 28) == 1.0


def test_runs_of_alike_tokens_collapse_into_the_one_before():
    states = torch.randn(4 * 2, 6)
    tokens = torch.arange(8)  # two places, four frames
    keep = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 1]], dtype=torch.bool).flatten()
    merged = merged_states(states, tokens, 2, keep)
    torch.testing.assert_close(merged[0], states[[0, 2, 4]].mean(dim=0))
    torch.testing.assert_close(merged[3], states[[3, 5]].mean(dim=0))
    assert torch.equal(merged[[1, 6, 7]], states[[1, 6, 7]])
    # Once merged, a place's chain goes on from what is left.
    left = keep.nonzero()[:, 0]
    similarity = chain_similarity(states[left], left, 2)
    assert similarity[[0, 1]].tolist() == [-2.0, -2.0]
    torch.testing.assert_close(similarity[3], F.cosine_similarity(states[6], states[0], dim=0))
    torch.testing.assert_close(similarity[4], F.cosine_similarity(states[7], states[3], dim=0))


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_equals_the_eager_map(family, prompt, padding_side):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, PROMPTS[prompt], padding_side=padding_side)
    embeds = embedded(model, inputs)
    ours = {query: video_attention(model, embeds, range(LAYERS), query) for query in ("last", "question")}
    assert number_of_hooks(stock) == 0
    stock.set_attn_implementation("eager")
    with torch.no_grad():
        maps = stock.get_decoder()(
            inputs_embeds=embeds.inputs_embeds,
            attention_mask=embeds.layout.valid.long(),
            position_ids=embeds.position_ids,
            output_attentions=True,
        ).attentions
    for number, span in enumerate(embeds.layout.videos):
        valid = embeds.layout.valid[span.row].nonzero()[:, 0]
        text = embeds.layout.text[span.row].nonzero()[:, 0]
        rows = {"last": valid[-1:], "question": text[text > span.positions.max()]}
        for query, queries in rows.items():
            for layer in range(LAYERS):
                expected = maps[layer][span.row].mean(dim=0)[queries][:, span.positions].mean(dim=0)
                torch.testing.assert_close(ours[query][layer][number].flatten(), expected, atol=1e-5, rtol=1e-4)


def test_attention_runs_no_layer_behind_the_one_it_reads():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    ran = []
    handles = [
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(stock.get_decoder().layers)
    ]
    model.compress(**inputs, retention_ratio=0.25, compressor=Attention(layer=2, query="last"))
    assert ran == [0, 1]
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("query", ["last", "question"])
def test_attention_keeps_the_most_attended(query):
    stock, model = wrapped("qwen2_5_vl")
    inputs = prompt_inputs(stock, PROMPTS["two videos"])
    for video in model.compress(**inputs, retention_ratio=0.25, compressor=Attention(1, query)).videos:
        kept, dropped = video.token_scores[video.keep], video.token_scores[~video.keep]
        assert kept.min() >= dropped.max()
    with pytest.raises(ValueError, match="layer=5 is none of the language model's 5 layers"):
        model.compress(**inputs, retention_ratio=0.25, compressor=Attention(5))


def test_a_question_must_follow_the_video():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, [[5, Video(), Image()]])
    with pytest.raises(ValueError, match="no text behind a video, and query='question' reads nothing else"):
        model.compress(**inputs, retention_ratio=0.25, compressor=Attention())
    assert model.compress(**inputs, retention_ratio=0.25, compressor=Attention(query="last")).videos[0].keep.sum() == 4
