"""Compression methods of others: what they are given, and what every one of them promises."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.models import (
    BY_NAME,
    FAMILIES,
    IMAGE_AND_VIDEO,
    RAGGED,
    TWO_VIDEOS,
    Video,
    for_forward,
    masked_inputs,
    prompt_inputs,
    share,
    skip_unless_served,
    stock_inputs,
    wrapped,
)
from helpers.reaching import reaching_language_model

from cacovid_hf.backbones import Backbone
from cacovid_hf.compressors import (
    COMPRESSORS,
    Compressor,
    Evs,
    FastV,
    FastVid,
    FlashVid,
    Merged,
    PruneVid,
    VidCom2,
    VisionZip,
)
from cacovid_hf.prompt import Prompt, PromptLayout, VideoSpan
from cacovid_hf.ratio import token_budget

# ------------------------------------------------------------------ merged embeddings


@dataclass(frozen=True)
class FirstTokensMerged(Compressor):
    """Keeps the first tokens of a video, each with the video's mean added."""

    name = "first_tokens_merged"

    def select(self, prompt, span, scores, budget):
        features = prompt.video_features(span)
        keep = torch.arange(span.num_tokens) < budget
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
        arguments = {
            # Its masks, and what it receives beside them too.
            **reaching_language_model(stock, for_forward(stock_inputs(stock, reference))),
            "inputs_embeds": changed,
            "position_ids": reference["position_ids"],
        }
        states = stock.get_decoder()(**arguments).last_hidden_state[:, -1]
        logits = stock.lm_head(states)
    return logits, changed, embeds


@pytest.mark.spread(3)
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


@pytest.mark.spread(3)
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
    if not BY_NAME[family].packed_pixels:
        maps = BY_NAME[family].tower_maps(stock, inputs)
    else:
        # One call of the eager attention function a frame.
        attention = BY_NAME[family].last_attention(stock)
        module = sys.modules[type(attention).__module__]
        original = module.eager_attention_forward

        def noting(layer, *args, **kwargs):
            output = original(layer, *args, **kwargs)
            if layer is attention:
                maps.append(output[1][0])
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "eager_attention_forward", noting)
            model.encode_videos(**inputs, frames_per_chunk=None)
    frame = 0
    for span, found in zip(prompt.layout.videos, prompt.tower, strict=True):
        received = found.received()
        assert received.shape == (span.num_frames, span.tokens_per_frame)
        for t in range(span.num_frames):
            of_patches = maps[frame].mean((0, 1))
            frame += 1
            if not BY_NAME[family].packed_pixels:
                expected = BY_NAME[family].pooled(stock, of_patches, span.grid)
            else:
                cells = of_patches.view(-1, 4).mean(1)
                expected = torch.empty_like(cells)
                window = BY_NAME[family].tower_window or max(span.grid)  # one window is the frame in raster order
                expected[window_order(*span.grid[1:], window)] = cells
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
    from cacovid_hf.backbones.packed_patches import window_places

    for window in (1, 2, 4):
        order = torch.tensor(window_order(*grid, window))
        assert torch.equal(order[window_places(*grid, window)], torch.arange(grid[0] * grid[1]))


def test_a_family_without_tower_attention_says_so(monkeypatch):
    _, model = wrapped("llava_onevision")
    monkeypatch.setattr(type(model.family), "tower_attention", Backbone.tower_attention)
    inputs = prompt_inputs(model.backbone, RAGGED)
    with pytest.raises(
        ValueError, match=r"'llava_onevision' does not give its vision tower's attention: choose a method"
    ):
        model.generate(**inputs, retention_ratio=0.25, compressor="visionzip", max_new_tokens=1)
    with pytest.raises(ValueError, match=r"embedded without its vision tower's attention: set `reads_tower = True`"):
        model.compress_prompt(model.embed(**inputs), retention_ratio=0.25, compressor="visionzip")


def test_settings_out_of_range():
    for method, settings in (
        (VisionZip, {"dominant_share": 1.5}),
        (FastVid, {"anchor_stride": 0}),
        (FlashVid, {"diverse_share": -1}),
    ):
        name, value = next(iter(settings.items()))
        with pytest.raises(ValueError, match=f"{name}={value}"):
            method(**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hooks_of_the_tower_are_gone_after_an_error(family):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, RAGGED)
    embedded(model, inputs)
    before = hooks(stock)
    (name,) = {"pixel_values", "pixel_values_videos"} & inputs.keys()
    inputs[name] = inputs[name][..., :-1]
    with pytest.raises((RuntimeError, ValueError)):
        embedded(model, inputs, with_tower_attention=True)
    assert hooks(stock) == before


# ------------------------------------------------------------------ small videos, worked out by hand

X, Y, Z = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
SMALL = [
    # A method, the tokens (T, P, D) of a video, a ratio, and the tokens that are kept of every frame.
    ("uniform", [[X, X, X]] * 2, 0.5, [[0, 2], [2]]),
    ("evs", [[X, Y, Z], [X, Z, Z], [Y, Z, Z]], 5 / 9, [[0, 1, 2], [1], [0]]),  # the first frame, then what changed
    ("evs", [[X, Y, Z], [X, Z, Z]], 1 / 3, [[0, 2], []]),
    ("divprune", [[X, X, Y], [X, Z, X]], 0.5, [[0, 2], [1]]),
    ("vidcom2", [[X, X, X, Y], [X, X, Z, X]], 0.25, [[3], [0]]),  # the quietest channel alone, which Z lacks
    ("vcast", [[X, X, X, Y], [X, Z, X, X]], 0.25, [[3], [1]]),
    ("vcast", [[X, X], [[2.0, 0, 0], X], [X, [3.0, 0, 0]]], 0.5, [[0], [0], [1]]),  # alike but for their size
    ("prunevid", [[X, Y], [X, Y], [X, Y], [X, Y]], 0.25, [[0, 1], [], [], []]),  # nothing moves: one frame says all
    ("simplecluster", [[X, X, Y], [Y, X, X]], 1 / 3, [[0, 2], []]),  # the first of each cluster
    ("simplecluster", [[X, X, X, X]], 0.5, [[0, 1]]),  # an empty cluster takes a token that is not the best of its own
    (
        "gleanvid",
        [[X, X, X, Y]],
        0.25,
        [[3]],
    ),  # without X - Y all are alike; 3 is more like its cell than like its frame
    ("gleanvid", [[X, X, X, Y], [X, X, X, Y]], 5 / 8, [[0, 1, 2, 3], [3]]),  # no news: 0.2 of the budget, Gini 0.5
    ("marc", [[X, Y], [X, Y], [Z, Z]], 2 / 3, [[], [0, 1], [0, 1]]),  # the two alike are one, at the second's place
    ("marc", [[X, Y], [X, Z], [Y, X]], 5 / 6, [[1], [0, 1], [0, 1]]),  # and what that merge changes most stays
    ("marc", [[X, X], [Y, X], [Y, X]], 1 / 6, [[], [], [0]]),  # less than a frame: 0.5 X + 0.5 Y, X; tied
]


@pytest.mark.parametrize(("method", "video", "ratio", "expected"), SMALL)
def test_small_videos(method, video, ratio, expected):
    features = torch.tensor(video)
    frames, places, _ = features.shape
    embeds = torch.cat([torch.zeros(1, 3), features.flatten(0, 1), torch.ones(1, 3)])[None]
    span = VideoSpan(0, (frames, 1, places), torch.arange(1, 1 + frames * places))
    everywhere = torch.ones(1, embeds.shape[1], dtype=torch.bool)
    layout = PromptLayout(everywhere, everywhere.clone().index_fill_(1, span.positions, False), (span,))
    ids = torch.zeros(1, embeds.shape[1], dtype=torch.long)
    prompt = Prompt(layout, ids, embeds, torch.arange(embeds.shape[1])[None])
    keep = COMPRESSORS[method]().compress(prompt, None, [ratio]).videos[0].keep
    assert [row.nonzero()[:, 0].tolist() for row in keep] == expected


# ------------------------------------------------------------------ what every method promises

ONE_FRAME = [[7, Video(1), 8]]
RIVALS = [
    name for name, kind in COMPRESSORS.items() if name not in ("cacovid", "random", "uniform") and not kind.inside_llm
]
# A mean over so few layers cannot be as small as the gate's ratio.
GATED = [FastV(ratio_of="kept") if name == "fastv" else name for name in COMPRESSORS]
PUBLISHED_COUNTS = [
    VidCom2(exact_count=False),
    Evs(exact_count=False),
    FastVid(exact_count=False),
    PruneVid(exact_count=False),
]


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_positions_and_the_oracle(family, method):
    skip_unless_served(family, method)
    stock, model = wrapped(family)
    for rows in (RAGGED, TWO_VIDEOS, IMAGE_AND_VIDEO, ONE_FRAME):
        inputs = prompt_inputs(stock, rows)
        for ratio in (0.01, 0.1, 0.5, 0.95):
            compressed = model.compress(**inputs, retention_ratio=ratio, compressor=method)
            for video in compressed.videos:
                assert video.keep.sum() == token_budget(video.span.num_tokens, ratio)
            assert compressed.inputs_embeds.isfinite().all()
            if ratio in (0.1, 0.5):
                expected, _, _ = merged_oracle(model, stock, inputs, compressed)
                with torch.no_grad():
                    ours = model(**inputs, retention_ratio=ratio, compressor=method).logits[:, -1]
                torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_compressed_as_it_would_be_alone(family, method):
    skip_unless_served(family, method)
    stock, model = wrapped(family)
    both = model.compress(**prompt_inputs(stock, RAGGED), retention_ratio=0.3, compressor=method)
    again = model.compress(**prompt_inputs(stock, RAGGED), retention_ratio=0.3, compressor=method)
    assert torch.equal(both.inputs_embeds, again.inputs_embeds)
    # The videos are alike.
    first = share(stock, prompt_inputs(stock, RAGGED), 0, 3)
    alone = model.compress(**first, retention_ratio=0.3, compressor=method)
    assert torch.equal(alone.videos[0].keep, both.videos[0].keep)


@pytest.mark.spread(8)
@pytest.mark.parametrize("method", GATED)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_divergence_gate(family, method):
    """A method changes what the model says, and leaves nothing behind: public ports of two methods did nothing, without a sign of it."""
    skip_unless_served(family, method)
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, RAGGED)
    settings = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    before = stock.generate(**stock_inputs(stock, inputs), **settings)
    attached, forwards = hooks(stock), [module.forward.__func__ for module in stock.modules()]

    ours = model.generate(**inputs, retention_ratio=0.1, compressor=method, **settings)
    assert not torch.equal(ours.sequences, before.sequences)
    # Not by rounding: in every row, as far as other questions change the logits.
    difference = (ours.logits[0] - before.logits[0])[:, 5:100].abs().amax(1)
    assert bool((difference > 0.05 * before.logits[0][:, 5:100].abs().amax(1)).all()), difference

    assert hooks(stock) == attached
    assert [module.forward.__func__ for module in stock.modules()] == forwards
    for after in (
        stock.generate(**stock_inputs(stock, inputs), **settings),
        model.generate(**inputs, retention_ratio=1.0, **settings),
    ):
        assert torch.equal(after.sequences, before.sequences)
        assert all(torch.equal(a, b) for a, b in zip(after.logits, before.logits, strict=True))


@pytest.mark.parametrize("method", PUBLISHED_COUNTS, ids=lambda method: method.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_published_counts(family, method):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    compressed = model.compress(**inputs, retention_ratio=0.1, compressor=method)
    for video in compressed.videos:
        least = video.span.tokens_per_frame if isinstance(method, Evs) else video.span.num_frames
        assert video.keep.sum() >= least
    expected, _, _ = merged_oracle(model, stock, inputs, compressed)
    with torch.no_grad():
        ours = model(**inputs, retention_ratio=0.1, compressor=method).logits[:, -1]
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_every_method_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "compressors.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(any(f"`{name}`" in line for line in table) for name in COMPRESSORS)


@pytest.mark.parametrize(
    "name", [n for n, kind in COMPRESSORS.items() if kind.score is Compressor.score and not kind.reads_tower]
)
def test_rules_are_in_full_precision_under_autocast(name):
    _, model = wrapped("qwen2_5_vl")
    prompt = model.embed(**prompt_inputs(model.backbone, [[3, Video(8, 6, 6), 6]]))
    plain = model.compress_prompt(prompt, retention_ratio=0.25, compressor=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model.compress_prompt(prompt, retention_ratio=0.25, compressor=name)
    assert torch.equal(ours.kept_indices, plain.kept_indices)
