"""Methods that read or cut the language model between its layers, against a full-width reference that drops nothing and masks or merges by hand."""

import itertools

import pytest
import torch
from helpers import flash_stand_in
from helpers.cut_models import BOTH, GREEDY, LAYERS, number_of_hooks, wrapped
from helpers.models import BY_NAME, FAMILIES, FIRST, PROMPTS, Image, Video, prompt_inputs
from torch.nn import functional as F

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import Attention, FastV, FrameFusion
from cacovid_hf.compressors.attention import video_attention
from cacovid_hf.compressors.framefusion import chain_similarity, fraction_to_remove, merged_states


def embedded(model, inputs):
    """The prompt as the language model receives it."""
    with torch.no_grad():
        return model.embed(**inputs)


class Reference:
    """One row of a prompt, all of it in every layer, computed from the stock model's public modules with explicit masks."""

    def __init__(self, model, prompt, row):
        self.decoder, self.head = model.get_decoder(), model.backbone.lm_head
        self.suppressed = model.generation_config.suppress_tokens
        valid = prompt.layout.valid[row]
        self.embeds = prompt.inputs_embeds[row : row + 1, valid]
        extra = None if prompt.extra is None else prompt.extra[row : row + 1, valid]
        self.behind = model.family.behind_layers(model.backbone.config, extra)
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
                likely[self.suppressed] = -torch.inf
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
            # GLM norms what attention and MLP add.
            parts = dict(layer.named_children())
            states = states + parts.get("post_self_attn_layernorm", torch.nn.Identity())(attended)
            if isinstance(method, MergedByHand) and index + 1 < LAYERS:
                for video in range(len(self.videos)):
                    method.step(self, states[0], alive, video, weights)
            added = layer.mlp(layer.post_attention_layernorm(states))
            states = states + parts.get("post_mlp_layernorm", torch.nn.Identity())(added)
            if index < len(self.behind):
                states[:, : self.length] += self.behind[index]
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
            count = max(1, round(round(len(left) * (1 - self.needed(state["removed"])), 9)))
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


@pytest.mark.spread(30)
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
    for family in FIRST:
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
        logits[:, reference.suppressed] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, sequence[length:, None])[:, 0]
        torch.testing.assert_close(scores[number], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree(family, method, monkeypatch):
    stock, model = wrapped(family)
    for prompt in ("one video", "ragged batch") if BY_NAME[family].flash_alone else ("ragged batch",):
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
            **({} if embeds.extra is None else model.family.extra_arguments(stock.config, embeds.extra)),
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
