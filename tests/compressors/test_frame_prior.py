"""A prior over frames: whose scores, which counts, and that the method inside is what it is alone."""

import pytest
import torch
from helpers.models import BY_NAME, FAMILIES, IMAGE_AND_VIDEO, RAGGED, TWO_VIDEOS, prompt_inputs, wrapped

from cacovid_hf.compressors import COMPRESSORS, Attention, Compressor, DivPrune, Evs, FramePrior, Marc, VisionZip
from cacovid_hf.compressors.frame_prior import blind_methods, part_of_video
from cacovid_hf.compressors.prior import PriorScores, frame_counts
from cacovid_hf.policies.settings import Selection
from cacovid_hf.ratio import AutoBudget, token_budget


def test_counts_of_frames_by_hand():
    token = torch.tensor([[9.0, 8, 1], [7, 2, 0], [6, 5, 4]])
    frame = torch.tensor([6.0, 3, 0])
    # As many as the policy's own selection keeps: 9, 8, 7, 6, 5 are the highest five.
    policy = PriorScores(token, frame, Selection())
    assert frame_counts(policy, 5 / 9, 5).tolist() == [2, 1, 2]
    # In proportion to the frames' scores: 6 : 3 : 0 of 6, no frame more than 3.
    assert frame_counts(PriorScores(token, frame), 2 / 3, 6).tolist() == [3, 3, 0]
    assert frame_counts(PriorScores(token, frame), 1 / 3, 3).tolist() == [2, 1, 0]


# The tiny models of these families attend in layer 2 alone.
PRIOR = {(family, "attention"): Attention(layer=2) for family in FAMILIES if not BY_NAME[family].attends}


@pytest.mark.parametrize("by", ["cacovid", "attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_get_what_the_prior_says_and_the_method_chooses(family, by):
    stock, model = wrapped(family)
    for rows in (RAGGED, TWO_VIDEOS, IMAGE_AND_VIDEO):
        inputs = prompt_inputs(stock, rows)
        prompt = model.embed(**inputs, with_tower_attention=True)
        for inner in (DivPrune(), VisionZip()):
            compressed = model.compress(**inputs, retention_ratio=0.3, compressor=FramePrior(inner, by))
            alone = model.compress(**inputs, retention_ratio=0.3, compressor=PRIOR.get((family, by), by))
            for video, scored in zip(compressed.videos, alone.videos, strict=True):
                budget = token_budget(video.span.num_tokens, 0.3)
                counts = scored.keep.sum(1)
                if by == "attention":
                    counts = frame_counts(PriorScores(scored.token_scores, scored.frame_scores), 0.3, budget)
                assert torch.equal(video.keep.sum(1), counts)
                assert counts.sum() == budget
                span = next(s for s in prompt.layout.videos if torch.equal(s.positions, video.span.positions))
                for t, count in enumerate(counts.tolist()):
                    if 0 < count < span.tokens_per_frame:
                        part, one = part_of_video(prompt, span, slice(t, t + 1))
                        chosen = inner.select(part, one, None, count)
                        keep = chosen if isinstance(chosen, torch.Tensor) else chosen.keep
                        assert torch.equal(video.keep[t], keep[0])


def test_windows_of_frames():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, RAGGED)
    prompt = model.embed(**inputs)
    span = prompt.layout.videos[0]
    for window in (2, span.num_frames, 99):
        method = FramePrior(Evs(), window=window)
        video = model.compress_prompt(prompt, retention_ratio=0.4, compressor=method).videos[0]
        counts = model.compress_prompt(prompt, retention_ratio=0.4, compressor="cacovid").videos[0].keep.sum(1)
        found = [int(part.sum()) for part in video.keep.split(window)]
        assert found == [int(part.sum()) for part in counts.split(window)]
    whole = model.compress_prompt(prompt, retention_ratio=0.4, compressor="evs").videos[0]
    assert torch.equal(video.keep, whole.keep)  # one window: the method as it is


def test_settings_of_the_config_and_budgets_by_scores():
    stock, model = wrapped("llava_onevision")
    inputs = prompt_inputs(stock, RAGGED)
    method = FramePrior("uniform")
    before = model.compress(**inputs, retention_ratio=0.3, compressor=method).videos[0].keep.sum(1)
    model.config.scope, model.config.contribution_share = "frame", 0.5
    try:
        after = model.compress(**inputs, retention_ratio=0.3, compressor=method).videos[0].keep.sum(1)
        alone = model.compress(**inputs, retention_ratio=0.3).videos[0].keep.sum(1)
    finally:
        model.config.scope, model.config.contribution_share = Selection.scope, Selection.contribution_share
    assert torch.equal(after, alone)
    assert not torch.equal(after, before)
    auto = model.compress(**inputs, retention_ratio=AutoBudget(0.1, 0.5, 0.0), compressor=method)
    plain = model.compress(**inputs, retention_ratio=AutoBudget(0.1, 0.5, 0.0))
    assert [v.keep.sum() for v in auto.videos] == [v.keep.sum() for v in plain.videos]


def test_methods_that_go_with_a_prior():
    blind = {n for n, k in COMPRESSORS.items() if k.score is Compressor.score and not k.inside_llm}
    assert set(blind_methods()) == blind | {"marc"}
    assert FramePrior("visionzip").reads_tower
    assert not FramePrior("divprune").reads_tower
    assert FramePrior(Marc()).inner == Marc()
    using = [FramePrior(), FramePrior(by="attention"), Marc(), Marc(clips=1), Marc(clips=1, clips_by="attention")]
    assert [method.uses_policy for method in using] == [True, False, False, True, False]
    for inner in ("cacovid", "fastv", "nothing", Evs(exact_count=False), Marc(clips=2), COMPRESSORS["attention"]()):
        with pytest.raises(ValueError, match="method="):
            FramePrior(inner)
    for settings in ({"by": "uniform"}, {"window": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            FramePrior(**settings)
