"""A budget that the scores decide: as many tokens as score above a threshold, within bounds, by every way into the model."""

import pytest
import torch
from helpers.models import FAMILIES, RAGGED, TWO_VIDEOS, masked_inputs, prompt_inputs, stock_model

from cacovid_hf import AutoBudget, CaCoVidConfig, CaCoVidForConditionalGeneration
from cacovid_hf.ratio import calibrated_threshold, check_asked, keeps_all, parse_ratio, resolve

COUNTS = [
    (AutoBudget(0.1, 0.5), 7, 7),
    (AutoBudget(0.1, 0.5), 0, 2),
    (AutoBudget(0.1, 0.5), 1, 2),
    (AutoBudget(0.1, 0.5), 20, 10),
    (AutoBudget(0.001, 1.0), 0, 1),
    (AutoBudget(0.001, 1.0), 20, 20),
    (AutoBudget(0.25, 0.25), 13, 5),
]


@pytest.mark.parametrize(("budget", "above", "kept"), COUNTS)
@pytest.mark.parametrize("threshold", [0.0, -3.0, 2.5])
def test_as_many_as_score_above_the_threshold_within_bounds(budget, above, kept, threshold):
    scores = torch.tensor([threshold + 1] * above + [threshold] * (20 - above)).view(4, 5)
    assert AutoBudget(budget.floor, budget.cap, threshold).count(scores) == kept


BAD = [
    (dict(floor=0.0), r"auto floor=0\.0 is outside \(0, 1\]"),
    (dict(cap=1.5), r"auto cap=1\.5 is outside"),
    (dict(floor=0.5, cap=0.2), r"auto floor=0\.5 is above auto cap=0\.2"),
    (dict(threshold="0"), "auto threshold='0' is not a number"),
    (dict(threshold=float("nan")), "auto threshold=nan is not a number"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoBudget(**settings)
    with pytest.raises(ValueError, match=message):
        CaCoVidConfig(**{f"auto_{name}": value for name, value in settings.items()})


WORDS = [("0.25", 0.25), ("1", 1.0), ("auto", "auto"), ("auto:0.02:0.5", AutoBudget(0.02, 0.5))]
BAD_WORDS = {
    "half": "--r='half' is not a number",
    "auto:0.1": "--r='auto:0.1' is neither a number nor auto:FLOOR:CAP",
    "auto:a:b": "--r='auto:a:b' is neither a number",
    "auto:0.5:0.1": r"auto floor=0\.5 is above",
    "0": "outside",
    "2": "outside",
}


@pytest.mark.parametrize(("words", "ratio"), WORDS)
def test_words_of_a_command_line(words, ratio):
    assert parse_ratio(words, "--r") == ratio


@pytest.mark.parametrize("words", BAD_WORDS)
def test_bad_words(words):
    with pytest.raises(ValueError, match=BAD_WORDS[words]):
        parse_ratio(words, "--r")


def test_a_calibrated_threshold_gives_the_mean():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(6, 10, generator=generator) * (1 + number % 5) for number in range(40)]
    for mean in (0.05, 0.1, 0.2):
        threshold = calibrated_threshold(scores, mean, cap=0.5)
        budget = AutoBudget(0.01, 0.5, threshold)
        counts = [budget.count(some) for some in scores]
        assert mean - 1 / (40 * 60) <= sum(counts) / (40 * 60) <= mean
        assert len(set(counts)) > 3
    with pytest.raises(ValueError, match=r"mean_ratio=0\.6 is outside \[0\.01, 0\.5\]"):
        calibrated_threshold(scores, 0.6, cap=0.5)
    with pytest.raises(ValueError, match="no scores"):
        calibrated_threshold([], 0.1)


def wrapped(family, **settings):
    """A model whose random policy scores about half of the tokens above 0."""
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, contribution_share=1.0, scope="tokens", **settings)
    with torch.no_grad():
        for weight in model.policy.token_head.parameters():
            weight.normal_(std=0.8, generator=torch.Generator().manual_seed(weight.numel()))
    return stock, model


@pytest.mark.parametrize("prompt", [RAGGED, TWO_VIDEOS], ids=["ragged batch", "two videos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_video_has_its_own_budget_and_the_oracle_holds(family, prompt):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, prompt, seed=2)
    scores = [video.token_scores for video in model.compress(**inputs, retention_ratio=0.5).videos]
    thresholds = torch.cat([some.flatten() for some in scores]).quantile(torch.tensor([0.3, 0.4, 0.5, 0.6])).tolist()
    # The first by which the videos of this random model differ.
    threshold = next(one for one in thresholds if len({int((some > one).sum()) for some in scores}) > 1)
    budget = AutoBudget(0.01, 1.0, threshold=threshold)
    compressed = model.compress(**inputs, retention_ratio=budget)
    for video in compressed.videos:
        assert torch.equal(video.keep, video.token_scores > budget.threshold)
    assert len({int(video.keep.sum()) for video in compressed.videos}) > 1

    settings = dict(max_new_tokens=6, do_sample=False)
    tokens = model.generate(**inputs, retention_ratio=budget, **settings)
    reference = masked_inputs(stock, inputs, compressed.kept_indices)
    assert torch.equal(tokens, stock.generate(**reference, **settings))
    with torch.no_grad():
        logits = model(**inputs, retention_ratio=budget).logits[:, -1]
        torch.testing.assert_close(logits, stock(**reference).logits[:, -1], atol=2e-4, rtol=1e-4)


def test_the_config_decides_where_a_call_does_not(tmp_path):
    stock, model = wrapped("llava_onevision", retention_ratio="auto", auto_floor=0.3, auto_cap=0.3)
    inputs = prompt_inputs(stock, RAGGED)

    def kept(**call):
        return [int(video.keep.sum()) for video in model.compress(**inputs, **call).videos]

    assert kept() == kept(retention_ratio="auto") == kept(retention_ratio=0.3) == [4, 4, 4]
    assert kept(retention_ratio=AutoBudget(0.5, 0.5)) == [8, 8, 8]
    assert kept(retention_ratio=["auto", 0.5, AutoBudget(1.0, 1.0)]) == [4, 8, 16]
    model.config.auto_cap = 1.0
    model.config.auto_threshold = 1e6
    assert kept() == [4, 4, 4]
    model.config.auto_threshold = -1e6
    assert kept() == [16, 16, 16]
    model.config.base_model_name_or_path = "some/id"
    model.save_pretrained(tmp_path)
    again = CaCoVidForConditionalGeneration.from_pretrained(tmp_path, backbone=stock, auto_floor=0.1)
    settings = (again.config.retention_ratio, again.config.auto_floor, again.config.auto_threshold)
    assert settings == ("auto", 0.1, -1e6)


def test_methods_without_scores_have_nothing_to_decide_by():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, RAGGED)
    with pytest.raises(ValueError, match="compressor 'uniform' has no scores to decide a budget by"):
        model.generate(**inputs, retention_ratio="auto", compressor="uniform", max_new_tokens=1)
    with pytest.raises(ValueError, match="retention_ratio='automatic' is not a number"):
        model.compress(**inputs, retention_ratio="automatic")


# ---------------------------------------------------------------- what a call may ask for

AUTO = AutoBudget(0.02, 0.4, 1.5)
RESOLVED = [
    (0.25, 2, (0.25, 0.25)),
    (1, 3, (1.0, 1.0, 1.0)),
    (torch.tensor(0.5), 1, (0.5,)),
    ([0.25, 1], 2, (0.25, 1.0)),
    (torch.tensor([0.25, 0.5]), 2, (0.25, 0.5)),
    ("auto", 2, (AUTO, AUTO)),
    (("auto", 0.5, AutoBudget(0.1, 0.2)), 3, (AUTO, 0.5, AutoBudget(0.1, 0.2))),
    (None, 2, (0.125, 0.125)),
    (0.25, 0, ()),
    ([], 0, ()),
]
NO_RATIOS = [
    (1.5, 1, r"retention_ratio=1\.5 is outside \(0, 1\]"),
    (0, 1, r"retention_ratio=0\.0 is outside"),
    (True, 1, "retention_ratio=True is not a number"),
    (10**400, 1, r"retention_ratio=10+\.\.\.0+ is not a number"),
    ("x" * 5000, 1, r"retention_ratio='x+\.\.\.x+' is not a number"),
    ("0.25", 1, "retention_ratio='0.25' is not a number"),
    ([0.25, 2], 2, r"retention_ratio\[1\]=2\.0 is outside"),
    ([0.25, None], 2, r"retention_ratio\[1\]=None is not a number"),
    (2.0, 0, "retention_ratio=2.0 is outside"),
]


class Defaults:
    retention_ratio = 0.125
    auto_floor, auto_cap, auto_threshold = 0.02, 0.4, 1.5


@pytest.mark.parametrize(("asked", "num_videos", "ratios"), RESOLVED)
def test_one_ratio_per_video(asked, num_videos, ratios):
    assert resolve(asked, Defaults(), num_videos) == ratios
    if asked is not None:
        check_asked(asked)


@pytest.mark.parametrize(("asked", "num_videos", "message"), NO_RATIOS)
def test_what_is_not_a_ratio(asked, num_videos, message):
    with pytest.raises(ValueError, match=message):
        resolve(asked, Defaults(), num_videos)
    with pytest.raises(ValueError, match=message):
        check_asked(asked)


def test_one_ratio_too_many():
    with pytest.raises(ValueError, match=r"has 3 values and the prompt 2 video\(s\)"):
        resolve([0.1, 0.2, 0.3], Defaults(), 2)


def test_everything_is_kept_at_one_alone():
    assert keeps_all((1.0, 1.0))
    assert not keeps_all((1.0, 0.5))
    assert not keeps_all(())
    assert not keeps_all((AutoBudget(1.0, 1.0),))
