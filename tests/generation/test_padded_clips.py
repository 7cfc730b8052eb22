"""LLaVA-OneVision with clips of different lengths in a batch or prompt: each gives what it gives alone, and the padding is never encoded."""

import pytest
import torch
from helpers.media import numbered_picture
from helpers.models import stock_model
from helpers.processors import tiny_processor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.compressors.fastv import FastV

LENGTHS = (3, 8, 5)
STEP = dict(do_sample=False, max_new_tokens=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CaCoVidForConditionalGeneration.from_backbone(stock_model("llava_onevision")).eval()


@pytest.fixture(scope="module")
def processor():
    return with_video_reader(tiny_processor("llava_onevision"))


def clip(length):
    return torch.stack([torch.from_numpy(numbered_picture(37 * length + i).copy()) for i in range(length)])


def ask(*lengths):
    words = {"type": "text", "text": "what color is the circle"[: 9 + 4 * lengths[0]]}
    return [{"role": "user", "content": [*({"type": "video", "video": clip(n)} for n in lengths), words]}]


def inputs_of(processor, messages):
    return dict(
        processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
    )


@pytest.fixture(scope="module")
def batch(processor):
    return inputs_of(processor, [ask(n) for n in LENGTHS])


@pytest.fixture(scope="module")
def rows(processor):
    return [inputs_of(processor, ask(n)) for n in LENGTHS]


def test_the_processor_says_the_true_lengths(batch, rows):
    assert batch["video_lengths"].tolist() == list(LENGTHS)
    assert batch["pixel_values_videos"].shape[:2] == (3, 8)
    for number, row in enumerate(rows):
        assert "video_lengths" not in row
        length = LENGTHS[number]
        assert torch.equal(batch["pixel_values_videos"][number, :length], row["pixel_values_videos"][0])
        ids = batch["input_ids"][number][batch["attention_mask"][number].bool()]
        assert torch.equal(ids, row["input_ids"][0])


@pytest.mark.parametrize("method", [None, "divprune", "visionzip", "fastvid"])
@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_compress(model, batch, rows, method, ratio):
    together = model.compress(**batch, retention_ratio=ratio, compressor=method)
    for number, row in enumerate(rows):
        alone = model.compress(**row, retention_ratio=ratio, compressor=method)
        assert torch.equal(together.videos[number].keep, alone.videos[0].keep)
        found = together.inputs_embeds[number][together.attention_mask[number].bool()]
        torch.testing.assert_close(found, alone.inputs_embeds[0])


@pytest.mark.parametrize("method", [None, FastV(ratio_of="kept")])
@pytest.mark.parametrize("ratio", [1.0, 0.25, [0.2, 1.0, 0.5]])
def test_generate(model, batch, rows, method, ratio):
    together = model.generate(**batch, retention_ratio=ratio, compressor=method, **STEP)
    for number, row in enumerate(rows):
        own = ratio[number] if isinstance(ratio, list) else ratio
        alone = model.generate(**row, retention_ratio=own, compressor=method, **STEP)
        new = alone.shape[1] - row["input_ids"].shape[1]
        assert torch.equal(together[number, -new:], alone[0, -new:])


@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_forward(model, batch, rows, ratio):
    labels = batch["input_ids"].clone()
    with torch.no_grad():
        together = model(**batch, labels=labels, retention_ratio=ratio)
        for number, row in enumerate(rows):
            alone = model(**row, retention_ratio=ratio)
            torch.testing.assert_close(together.logits[number, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(together.loss)


def test_gradients_reach_the_tower(model, batch):
    model.backbone.train()
    try:
        loss = model(**batch, labels=batch["input_ids"].clone(), retention_ratio=0.5).loss
        weight = next(model.backbone.model.vision_tower.parameters())
        (gradient,) = torch.autograd.grad(loss, [weight])
    finally:
        model.backbone.eval()
    assert float(gradient.abs().sum()) > 0


def test_the_padding_is_not_encoded(model, batch):
    seen = []
    handle = model.backbone.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])),
        with_kwargs=True,
    )
    try:
        model.compress(**batch, retention_ratio=0.25)
    finally:
        handle.remove()
    assert seen == list(LENGTHS)


def test_lengths_and_encoded_videos(model, batch, rows):
    lengths = model.kept_lengths(**batch, retention_ratio=0.25)
    assert lengths == [model.kept_lengths(**row, retention_ratio=0.25)[0] for row in rows]
    encoded = model.encode_videos(**batch)
    for number, row in enumerate(rows):
        alone = model.encode_videos(**row)
        assert encoded.grids[number] == alone.grids[0]
        torch.testing.assert_close(encoded.features[number], alone.features[0])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = model.generate(**text, encoded_videos=encoded, retention_ratio=0.25, **STEP)
    assert torch.equal(ids, model.generate(**batch, retention_ratio=0.25, **STEP))


@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_several_in_one_prompt(model, processor, ratio):
    """As a session, which encodes one after the other."""
    inputs = inputs_of(processor, ask(3, 8))
    assert inputs["video_lengths"].tolist() == [3, 8]
    ids = model.generate(**inputs, retention_ratio=ratio, **STEP)
    session = model.session(**inputs, retention_ratio=ratio)
    assert torch.equal(session.generate(**inputs, **STEP), ids)
    one = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:1, :3]}
    features = [model.encode_videos(pixel_values_videos=one["pixel_values_videos"]).features[0]]
    torch.testing.assert_close(model.encode_videos(**inputs).features[0], features[0])


def test_clips_of_one_length_stay_stock(processor):
    inputs = inputs_of(processor, [ask(4), ask(4)])
    assert "video_lengths" not in inputs


def test_lengths_that_do_not_fit(model, batch):
    for lengths in ([3, 8], [3, 9, 5], [0, 8, 5]):
        with pytest.raises(ValueError, match="do not fit pixel_values_videos of shape"):
            model.generate(**{**batch, "video_lengths": torch.tensor(lengths)}, retention_ratio=0.25, **STEP)
