"""Compression methods of others: what they are given, the published numbers they reproduce, and what every one of them promises."""

from dataclasses import dataclass

import pytest
import torch
from models import FAMILIES, IMAGE_AND_VIDEO, RAGGED, TWO_VIDEOS, masked_inputs, prompt_inputs, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import Compressor, Merged
from cacovid_hf.selection import token_budget


def wrapped(family, attention="sdpa"):
    stock = stock_model(family, attention)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock)


# ------------------------------------------------------------------ merged embeddings


@dataclass(frozen=True)
class FirstTokensMerged(Compressor):
    """Keeps the first tokens of a video, each with the video's mean added."""

    name = "first_tokens_merged"

    def select(self, prompt, span, scores, retention_ratio):
        features = prompt.video_features(span)
        keep = torch.arange(span.num_tokens) < token_budget(span.num_tokens, retention_ratio)
        return Merged(keep.view(features.shape[:2]), features + features.mean((0, 1)))


def merged_oracle(model, stock, inputs, compressed):
    """What the uncompressed stock model's language model says: merged embeddings at the kept places, the others masked out as keys."""
    reference = masked_inputs(stock, inputs, compressed.kept_indices)
    layout = model.family.layout(stock.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    others = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    embeds = model.family.embed(stock, layout, inputs["input_ids"], inputs["attention_mask"], others).inputs_embeds
    is_kept = compressed.kept_indices >= 0
    rows = torch.arange(len(embeds))[:, None].expand_as(is_kept)
    changed = embeds.clone()
    changed[rows[is_kept], compressed.kept_indices[is_kept]] = compressed.inputs_embeds[is_kept]
    with torch.no_grad():
        logits = stock(
            inputs_embeds=changed, attention_mask=reference["attention_mask"], position_ids=reference["position_ids"]
        ).logits[:, -1]
    return logits, changed, embeds


@pytest.mark.parametrize("rows", [RAGGED, TWO_VIDEOS, IMAGE_AND_VIDEO], ids=["ragged", "two videos", "image beside"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_embeddings_stand_at_the_kept_places(family, rows):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, rows)
    method = FirstTokensMerged()
    compressed = model.compress(**inputs, retention_ratio=0.25, compressor=method)
    expected, changed, embeds = merged_oracle(model, stock, inputs, compressed)
    for video in compressed.videos:
        places = video.span.positions[video.keep.flatten()]
        before = embeds[video.row, video.span.positions]
        torch.testing.assert_close(changed[video.row, places], embeds[video.row, places] + before.mean(0))
    with torch.no_grad():
        ours = model(**inputs, retention_ratio=0.25, compressor=method).logits[:, -1]
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
    tokens = model.generate(**inputs, retention_ratio=0.25, compressor=method, max_new_tokens=1, do_sample=False)
    allowed = expected.clone()
    allowed[:, stock.generation_config.suppress_tokens] = -torch.inf
    assert torch.equal(tokens[:, -1], allowed.argmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_ratio_a_video_and_a_video_kept_whole(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    compressed = model.compress(**inputs, retention_ratio=[1.0, 0.25], compressor=FirstTokensMerged())
    whole, cut = compressed.videos
    assert whole.keep.all()
    assert cut.keep.sum() == token_budget(cut.span.num_tokens, 0.25)
    _, changed, embeds = merged_oracle(model, stock, inputs, compressed)
    assert torch.equal(changed[whole.row, whole.span.positions], embeds[whole.row, whole.span.positions])


# ------------------------------------------------------------------ the vision tower's attention


def embedded(model, inputs, **options):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    others = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    layout = model.family.layout(model.backbone.config, ids, mask, others)
    return model.family.embed(model.backbone, layout, ids, mask, others, **options)


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("rows", [RAGGED, TWO_VIDEOS, IMAGE_AND_VIDEO], ids=["ragged", "two videos", "image beside"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tower_attention_is_that_of_the_eager_tower(family, rows):
    stock, model = wrapped(family, "eager")
    inputs = prompt_inputs(stock, rows)
    plain = embedded(model, inputs)  # the stock code attaches hooks of its own at its first call
    before = hooks(stock)
    prompt = embedded(model, inputs, with_tower_attention=True)
    assert hooks(stock) == before
    assert torch.equal(prompt.inputs_embeds, plain.inputs_embeds)

    maps = []
    attention = stock.model.vision_tower if family == "llava_onevision" else stock.model.visual.blocks[-1].attn
    if family == "llava_onevision":
        pixels = inputs["pixel_values_videos"].flatten(0, 1)
        maps = list(attention(pixels, output_attentions=True).attentions[-1])
    else:
        # One call of the eager attention function a frame.
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

        original = module.eager_attention_forward

        def noting(layer, *args, **kwargs):
            output = original(layer, *args, **kwargs)
            if layer is attention:
                maps.append(output[1][0])
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "eager_attention_forward", noting)
            stock.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    frame = 0
    for span, found in zip(prompt.layout.videos, prompt.tower, strict=True):
        received = found.received()
        assert received.shape == (span.num_frames, span.tokens_per_frame)
        for t in range(span.num_frames):
            of_patches = maps[frame].mean((0, 1))
            frame += 1
            if family == "llava_onevision":
                expected = stock.model.apply_pooling(of_patches[None, :, None])[0, :, 0]
            else:
                cells = of_patches.view(-1, 4).mean(1)
                expected = torch.empty_like(cells)
                expected[window_order(*span.grid[1:], 2)] = cells
            torch.testing.assert_close(received[t], expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found.of_mean_query().sum(1), torch.ones(span.num_frames))
        assert found.mean_keys().shape[:2] == (span.num_frames, span.tokens_per_frame)
    assert frame == len(maps)


def window_order(height, width, window):
    """Cells in the order that windows of `window x window` are read, by loops."""
    return [
        y * width + x
        for top in range(0, height, window)
        for left in range(0, width, window)
        for y in range(top, min(top + window, height))
        for x in range(left, min(left + window, width))
    ]


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (5, 7), (14, 14), (9, 8)])
def test_window_places_invert_the_order_of_windows(grid):
    from cacovid_hf.backbones.qwen2_5_vl import window_places

    for window in (1, 2, 4):
        order = torch.tensor(window_order(*grid, window))
        assert torch.equal(order[window_places(*grid, window)], torch.arange(grid[0] * grid[1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hooks_of_the_tower_are_gone_after_an_error(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, RAGGED)
    embedded(model, inputs)
    before = hooks(stock)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][..., :-1]
    with pytest.raises((RuntimeError, ValueError)):
        embedded(model, inputs, with_tower_attention=True)
    assert hooks(stock) == before
