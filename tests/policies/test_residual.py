"""The residual policy against numbers by hand, against a plain loop over tokens, and in what the question may do to it."""

import pytest
import torch
from helpers.models import FAMILIES, PROMPTS, masked_inputs, prompt_inputs, stock_inputs, stock_model
from torch.nn import functional as F

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, ResidualPolicy
from cacovid_hf.policies.residual import change

ATTENTIONS = ("none", "question")


def residual_model(family="llava_onevision", attention="none", **options):
    return CaCoVidForConditionalGeneration.from_backbone(
        stock_model(family),
        policy_type="residual",
        policy_attention=attention,
        base_model_name_or_path="some/id",
        **options,
    )


def embedded(model, prompt):
    with torch.no_grad():
        return model.embed(**prompt_inputs(model.backbone, PROMPTS[prompt]))


def scored(model, prompt):
    with torch.no_grad():
        return model.policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)


def test_change_by_hand():
    tokens = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 5.0], [0.0, 0.0], [3.0, 4.0]])
    former = torch.tensor([[3.0, 4.0], [0.0, 4.0], [5.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    first = torch.tensor([False, False, False, False, True])
    residual, amount = change(tokens, former, first)
    assert residual.tolist() == [[0, 0], [3, 0], [-5, 5], [0, 0], [3, 4]]
    expected = [[0, 1], [3 / 5, 4 / 5], [2**0.5, 0], [0, 0], [1, 0]]
    torch.testing.assert_close(amount, torch.tensor(expected))


def plain_logits(policy, whole, span, place, former):
    """Of one token, without batches; `former` is its place in the frame before, or None. Returns the trunk's output and the token's logits."""
    row = whole.inputs_embeds[span.row]
    token = row[place]
    before = torch.zeros_like(token) if former is None else row[former]
    size = token.shape[-1:]
    parts = [
        F.layer_norm(token, size, policy.norm.weight, policy.norm.bias),
        F.layer_norm(token - before, size, policy.residual_norm.weight, policy.residual_norm.bias),
        ((token - before).norm() / token.norm())[None],
        (torch.zeros(1) if former is None else (token @ before / token.norm() / before.norm())[None]),
    ]
    if policy.attention == "question":
        layer, shape = policy.layer, policy.shape
        states = layer.input_layernorm(row)
        rope = policy._rope(whole.position_ids[..., span.row, :])
        query, key, value = layer.queries(states, rope), layer.keys(states, rope), layer.values(states)
        read = []
        for head in range(shape.num_key_value_heads):
            scores = key[head] @ query[head, place] * (shape.scale or shape.head_dim**-0.5)
            weights = scores.masked_fill(~whole.layout.text[span.row], float("-inf")).softmax(-1)
            read.append(weights @ value[head])
        held, read = policy.read_norm(value[:, place].flatten()), policy.read_norm(torch.cat(read))
        parts += [read, held * read]
    hidden = F.gelu(policy.trunk(torch.cat(parts)))
    return hidden, policy.token_head(hidden)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_plain_computation(family, prompt, attention):
    """Token by token; the first frame of every video is new, also behind another video."""
    model = residual_model(family, attention)
    policy, whole = model.policy, embedded(model, prompt)
    with torch.no_grad():
        for span, output in zip(whole.layout.videos, scored(model, whole), strict=True):
            places = span.positions.view(span.num_frames, span.tokens_per_frame).tolist()
            assert output.token_logits.shape == (span.num_frames, span.tokens_per_frame, 2)
            for frame, here in enumerate(places):
                found = [
                    plain_logits(policy, whole, span, place, places[frame - 1][index] if frame else None)
                    for index, place in enumerate(here)
                ]
                hidden, tokens = (torch.stack(part) for part in zip(*found, strict=True))
                torch.testing.assert_close(output.token_logits[frame], tokens, atol=2e-5, rtol=1e-4)
                pooled = torch.cat((hidden.mean(0), hidden.amax(0)))
                torch.testing.assert_close(output.frame_logits[frame], policy.frame_head(pooled), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_repeats_scores_alike(attention):
    """Of a picture shown again and again the first copy alone is new; with the question, places differ in what they read."""
    model = residual_model(attention=attention)
    whole = embedded(model, "one video")
    (span,) = whole.layout.videos
    frames = span.positions.view(span.num_frames, span.tokens_per_frame)
    whole.inputs_embeds[0, span.positions] = whole.inputs_embeds[0, frames[0]].repeat(span.num_frames, 1)
    (output,) = scored(model, whole)
    first, *others = output.token_scores
    assert all((other - first).abs().max() > 1e-3 for other in others)
    if attention == "none":
        for other in others[1:]:
            torch.testing.assert_close(other, others[0])


@pytest.mark.parametrize(("attention", "reads"), [("none", False), ("question", True)])
def test_what_the_question_does(attention, reads):
    model = residual_model(attention=attention)
    whole = embedded(model, "one video")
    (before,) = scored(model, whole)
    behind = whole.layout.text_places[0][-1]
    whole.inputs_embeds[0, behind] = torch.randn(whole.inputs_embeds.shape[-1])
    (after,) = scored(model, whole)
    assert torch.equal(before.token_logits, after.token_logits) is not reads


def test_blind_scores_need_no_text():
    model = residual_model()
    ids = torch.tensor([[111] * 17])
    kept = model.compress(input_ids=ids, pixel_values_videos=torch.randn(1, 4, 3, 56, 56), retention_ratio=0.5)
    assert int(kept.videos[0].keep.sum()) == 8


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_exact_and_the_answer_depends_on_the_choice(family, attention):
    """The divergence gate: what is dropped matters, and the stock model is itself again afterwards."""
    model = residual_model(family, attention)
    stock, inputs = model.backbone, prompt_inputs(model.backbone, PROMPTS["ragged batch"])
    whole = stock.generate(**stock_inputs(stock, inputs), max_new_tokens=4, do_sample=False)
    for ratio in (0.5, 0.25, 0.01):
        for video in model.compress(**inputs, retention_ratio=ratio).videos:
            assert int(video.keep.sum()) == max(1, int(ratio * video.span.num_tokens))
    with torch.no_grad():
        kept = model.compress(**inputs, retention_ratio=0.25)
        other = model.compress(**inputs, retention_ratio=0.25, compressor="uniform")
    assert any(not torch.equal(a.keep, b.keep) for a, b in zip(kept.videos, other.videos, strict=True))
    sequences = model.generate(**inputs, retention_ratio=0.25, max_new_tokens=4, do_sample=False)
    masked = masked_inputs(stock, inputs, kept.kept_indices)
    assert torch.equal(sequences, stock.generate(**masked, max_new_tokens=4, do_sample=False))
    assert not torch.equal(sequences, whole)
    assert torch.equal(stock.generate(**stock_inputs(stock, inputs), max_new_tokens=4, do_sample=False), whole)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_checkpoint_keeps_its_kind(attention, tmp_path):
    model = residual_model(attention=attention)
    model.save_pretrained(tmp_path)
    loaded = CaCoVidForConditionalGeneration.from_pretrained(tmp_path, backbone=model.backbone)
    assert (loaded.config.policy_type, loaded.config.policy_attention) == ("residual", attention)
    assert isinstance(loaded.policy, ResidualPolicy)
    ours, theirs = model.policy.state_dict(), loaded.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("layer.") for name in ours) is (attention == "question")
    other = {"none": "question", "question": "none"}[attention]
    with pytest.raises(ValueError, match="do not fit its config"):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path, backbone=model.backbone, policy_attention=other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"policy_type": "residual", "policy_attention": "causal"},
            "policy_attention='causal' does not go with policy_type='residual'",
        ),
        (
            {"policy_attention": "none"},
            "policy_attention='none' does not go with policy_type='full', .* use policy_type='residual'",
        ),
        (
            {"policy_type": "residual", "policy_attention": "blind"},
            "policy_attention='blind' is unknown: choose one of 'causal'",
        ),
        (
            {"policy_type": "light", "policy_attention": "none"},
            "does not go with policy_type='light', which has 'question'",
        ),
    ],
)
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        CaCoVidConfig(**settings)


def test_a_new_policy_of_the_other_attention():
    model = residual_model()
    model.reset_policy("question")
    assert model.config.policy_attention == model.policy.attention == "question"
    with pytest.raises(ValueError, match="does not go with policy_type='residual'"):
        model.reset_policy("bidirectional")
