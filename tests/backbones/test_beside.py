"""What a language model receives beside the embeddings (DeepStack): of every kept token its own, of words and of what was dropped nothing."""

from dataclasses import replace

import pytest
import torch
from helpers.cut_oracle import CutPrompts
from helpers.models import FAMILIES, IMAGE_AND_VIDEO, PROMPTS, RAGGED, prompt_inputs, wrapped
from helpers.reaching import reaching_language_model

from cacovid_hf.backbones import BACKBONES
from cacovid_hf.compressors import FastV, FrameFusion, Merged
from cacovid_hf.compressors.base import Compressor
from cacovid_hf.training.rollouts import generate_answers, score_answers, select_subsets

pytestmark = pytest.mark.spread(2)
# Whose language model receives something of every token that its first layers add.
DEEP = [name for name in FAMILIES if "deepstack_visual_embeds" in BACKBONES[name].extra_names]
GREEDY = dict(max_new_tokens=4, do_sample=False)


@pytest.fixture(params=DEEP)
def deep(request):
    """A stock model and the same one wrapped."""
    return wrapped(request.param)


class Received:
    """What a language model was given beside the embeddings, forward by forward."""

    def __init__(self, stock):
        self.calls = []
        stock.get_decoder().register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs, output):
        self.calls.append((kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")))

    def layers(self, call=-1):
        """`(layers, B, n, D)` of a call, zero where its mask names nothing."""
        mask, layers = self.calls[call]
        found = torch.zeros(len(layers), *mask.shape, layers[0].shape[-1])
        found[:, mask] = torch.stack(list(layers))
        return found


def stock_layers(stock, inputs):
    """`(layers, B, L, D)`, what the stock forward of the whole prompt gives."""
    found = reaching_language_model(stock, inputs)
    whole = torch.zeros(2, *inputs["input_ids"].shape, 64)
    whole[:, found["visual_pos_masks"]] = torch.stack(found["deepstack_visual_embeds"])
    return whole


@pytest.mark.parametrize("rows", [RAGGED, IMAGE_AND_VIDEO], ids=["ragged", "image beside"])
def test_layers_receive_what_belongs_to_the_kept_tokens(deep, rows):
    stock, model = deep
    inputs = prompt_inputs(stock, rows)
    with torch.no_grad():
        whole = stock_layers(stock, inputs)
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    expected = whole[:, torch.arange(len(kept))[:, None], kept.clamp(min=0)] * (kept >= 0)[None, ..., None]
    assert expected.abs().max() > 1
    received = Received(stock)
    model.generate(**inputs, retention_ratio=0.25, **GREEDY)
    assert torch.equal(received.layers(0), expected)
    assert received.calls[1:] == [(None, None)] * 3  # nothing beside the answer
    received.calls.clear()
    model(**inputs, retention_ratio=0.25)
    assert torch.equal(received.layers(), expected)
    # Beams share a prefill of all but the last token.
    received.calls.clear()
    model.generate(**inputs, retention_ratio=0.25, num_beams=3, **GREEDY)
    assert torch.equal(received.layers(0), expected[:, :, :-1])
    assert torch.equal(received.layers(1), expected[:, :, -1:].repeat_interleave(3, dim=1))


class Added:
    """What stands before each layer of a prefill and did not come out of the layer before it; attached before a call, so that its hooks see no cut."""

    def __init__(self, stock):
        self.left, self.added = [], []
        layers = stock.get_decoder().layers
        for layer, following in zip(layers, [*layers[1:], stock.get_decoder().norm], strict=True):
            layer.register_forward_hook(lambda module, args, output: self.left.append(output))
            following.register_forward_pre_hook(lambda module, args: self.added.append(args[0] - self.left[-1]))


@pytest.mark.parametrize("method", [FastV(layer=1, ratio_of="kept"), FrameFusion(0.99)], ids=lambda method: method.name)
@pytest.mark.parametrize("rows", [RAGGED, IMAGE_AND_VIDEO], ids=["ragged", "image beside"])
def test_cutting_between_layers_drops_them_with_their_tokens(deep, rows, method):
    """Both cut once, behind the attention of layer 0: behind each layer, every token that it saw gets its own, and words get nothing."""
    stock, model = deep
    inputs = prompt_inputs(stock, rows)
    with torch.no_grad():
        whole = stock_layers(stock, inputs)
    entered = model.compress(**inputs, retention_ratio=0.4, compressor=method).kept_indices
    found = Added(stock)
    left = model(**inputs, retention_ratio=0.4, compressor=method).kept_indices
    assert left.shape[1] < entered.shape[1]
    for layer, places in enumerate((entered, left)):
        expected = whole[layer, torch.arange(len(places))[:, None], places.clamp(min=0)] * (places >= 0)[..., None]
        assert expected.abs().max() > 1
        torch.testing.assert_close(found.added[layer], expected, atol=1e-4, rtol=1e-4)
    assert found.added[2].abs().max() == 0


def test_afterwards_the_stock_model_is_itself(deep):
    stock, model = deep
    inputs = prompt_inputs(stock, RAGGED)
    before = stock.generate(**inputs, **GREEDY)
    hooks = len(stock.get_decoder()._forward_pre_hooks)
    model.generate(**inputs, retention_ratio=0.25, **GREEDY)
    assert len(stock.get_decoder()._forward_pre_hooks) == hooks
    assert torch.equal(stock.generate(**inputs, **GREEDY), before)


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}], ids=["cache", "no cache"])
def test_a_call_within_a_call_has_its_own(deep, settings):
    """A logits processor asks the same model about another prompt."""
    stock, model = deep
    inputs, others = prompt_inputs(stock, PROMPTS["one video"]), prompt_inputs(stock, RAGGED, seed=5)
    expected = model.generate(**inputs, retention_ratio=0.25, **GREEDY, **settings)
    inner = model.generate(**others, retention_ratio=0.3, **GREEDY)
    text = stock.generate(**prompt_inputs(stock, [[9]]), **GREEDY)
    seen = []

    def asks(input_ids, scores):
        seen.append(model.generate(**others, retention_ratio=0.3, **GREEDY))
        seen.append(model.generate(**prompt_inputs(stock, [[9]]), **GREEDY))
        return scores

    ours = model.generate(**inputs, retention_ratio=0.25, logits_processor=[asks], **GREEDY, **settings)
    assert torch.equal(ours, expected)
    assert all(torch.equal(found, inner) for found in seen[::2])
    assert all(torch.equal(found, text) for found in seen[1::2])


def test_rollouts_have_them(deep):
    """Each rollout's probability is the stock model's on the cut prompt; without the features it is another."""
    stock, model = deep
    stock.generation_config.suppress_tokens = []
    inputs = prompt_inputs(stock, RAGGED)
    with torch.no_grad():
        prompt = model.embed(**inputs)
    keeps = [torch.rand(2, span.num_tokens) < 0.4 for span in prompt.layout.videos]
    prompts, rows = select_subsets(prompt, keeps)
    answers = [torch.randint(5, 100, (2,)) for _ in rows]
    scores = score_answers(stock, prompts, answers, batch_size=4)
    greedy = generate_answers(stock, prompts, max_new_tokens=3, batch_size=4)
    for number, row in enumerate(rows.tolist()):
        kept = prompts.kept_indices[number].expand(len(RAGGED), -1)
        cut = CutPrompts(stock, inputs, kept)
        likely = cut.logits(row, answers[number][:-1]).softmax(-1).gather(1, answers[number][:, None])
        torch.testing.assert_close(scores.probability[number], likely.prod(), atol=0, rtol=1e-2)
        assert cut.greedy(3)[0][row].tolist() == greedy[number].tolist()
    without = score_answers(stock, replace(prompts, extra=None), answers)
    assert not torch.allclose(without.probability, scores.probability, atol=0, rtol=0.1)


def test_a_merged_token_has_that_of_its_place(deep):
    class Doubled(Compressor):
        name = "doubled"

        def select(self, prompt, span, scores, budget):
            features = prompt.video_features(span)
            keep = torch.zeros(span.num_tokens, dtype=torch.bool)
            keep[:budget] = True
            return Merged(keep.view(features.shape[:2]), features * 2)

    stock, model = deep
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    prompt = model.embed(**inputs)
    shorter = model.compress_prompt(prompt, retention_ratio=0.25, compressor=Doubled())
    (span,) = prompt.layout.videos
    place = (shorter.kept_indices[0] == span.positions[0]).nonzero().item()
    assert torch.equal(shorter.inputs_embeds[0, place], prompt.inputs_embeds[0, span.positions[0]] * 2)
    assert torch.equal(shorter.extra[0, place], prompt.extra[0, span.positions[0]])


def test_encoded_videos_hold_them(deep):
    stock, model = deep
    inputs = prompt_inputs(stock, PROMPTS["two videos"])
    prompt = model.embed(**inputs)
    encoded = model.encode_videos(**inputs, frames_per_chunk=2)
    wide = torch.cat([prompt.inputs_embeds, prompt.extra], dim=-1)[0]
    for span, features in zip(prompt.layout.videos, encoded.features, strict=True):
        torch.testing.assert_close(features, wide[span.positions], atol=1e-4, rtol=1e-4)
    without = {name: value for name, value in inputs.items() if "video" not in name}
    again = model.embed(**without, encoded_videos=encoded)
    torch.testing.assert_close(again.extra, prompt.extra, atol=1e-4, rtol=1e-4)
