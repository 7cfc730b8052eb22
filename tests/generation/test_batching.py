"""Batches of prompts of like kept length, which is known before anything is computed."""

from functools import wraps
from itertools import permutations

import pytest
import torch
from helpers.models import FAMILIES, PROMPTS, RAGGED, TWO_VIDEOS, prompt_inputs, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.prompt import batches_by_length


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_are_those_of_the_compressed_rows(family, prompt, monkeypatch):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS[prompt])
    expected = {
        ratio: model.compress(**inputs, retention_ratio=ratio).attention_mask.sum(dim=1).tolist()
        for ratio in (0.05, 0.25, 1.0)
    }
    encoded = model.encode_videos(**inputs)
    text = {name: value for name, value in inputs.items() if name not in model.family.video_inputs}
    text = {name: value for name, value in text.items() if name not in model.family.video_settings}

    @wraps(stock.forward)
    def computed(*args, **kwargs):
        raise AssertionError("something was computed")

    monkeypatch.setattr(stock, "forward", computed)
    for ratio, lengths in expected.items():
        assert model.kept_lengths(**inputs, retention_ratio=ratio) == lengths
        assert model.kept_lengths(**text, encoded_videos=encoded, retention_ratio=ratio) == lengths
        assert model.kept_lengths(**inputs, retention_ratio=ratio, compressor="uniform") == lengths
    assert model.kept_lengths(**inputs) == inputs["attention_mask"].sum(dim=1).tolist()


def test_a_ratio_for_each_video():
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, TWO_VIDEOS)
    ratios = [0.1, 0.75]
    (length,) = model.compress(**inputs, retention_ratio=ratios).attention_mask.sum(dim=1).tolist()
    assert model.kept_lengths(**inputs, retention_ratio=ratios) == [length]


@pytest.mark.parametrize(("ratio", "method"), [("auto", None), (0.25, "framefusion")])
def test_counts_that_the_content_decides_are_refused(ratio, method):
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with pytest.raises(ValueError, match="is decided by the video's content: give a number"):
        model.kept_lengths(**prompt_inputs(stock, RAGGED), retention_ratio=ratio, compressor=method)


def test_an_unknown_input_is_refused():
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with pytest.raises(ValueError, match="retention_rato is not an input of LlavaOnevisionForConditionalGeneration"):
        model.kept_lengths(**prompt_inputs(stock, RAGGED), retention_rato=0.25)


@pytest.mark.parametrize(
    ("lengths", "size", "batches"),
    [
        ([5, 9, 1, 7], 2, [[1, 3], [0, 2]]),
        ([5, 9, 5], 2, [[1, 0], [2]]),
        ([3, 3], 5, [[0, 1]]),
        ([], 4, []),
    ],
)
def test_batches(lengths, size, batches):
    assert batches_by_length(lengths, size) == batches


def test_no_order_wastes_less():
    """Of all ways to fill batches of three, none has fewer positions."""
    lengths = torch.randint(1, 50, (6,), generator=torch.Generator().manual_seed(0)).tolist()

    def positions(batches):
        return sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)

    least = min(positions([order[:3], order[3:]]) for order in permutations(range(6)))
    assert positions(batches_by_length(lengths, 3)) == least


@pytest.mark.parametrize("size", [0, -2])
def test_a_batch_of_nothing(size):
    with pytest.raises(ValueError, match=f"batch_size={size}"):
        batches_by_length([1], size)
