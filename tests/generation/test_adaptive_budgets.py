"""Budgets that scores decide, of whole videos and of frames, for every family: how many tokens stay, and the oracle by cutting on what is left."""

import pytest
import torch
from helpers.cut_oracle import CutPrompts
from helpers.models import FAMILIES, RAGGED, TWO_VIDEOS, prompt_inputs, wrapped

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import FramePrior
from cacovid_hf.ratio import AutoBudget, token_budget

STEPS = 4


def within(scores, threshold, floor=0.01, cap=1.0):
    """As many tokens as score above the threshold, within the bounds."""
    number = scores.numel()
    above = int((scores > threshold).sum())
    return min(max(above, token_budget(number, floor)), token_budget(number, cap))


# By a threshold: settings of the model, what a call asks for, and the count of each of two or more videos, by its number and scores.
BUDGETS = {
    "auto": lambda t: (dict(auto_floor=0.01, auto_cap=1.0, auto_threshold=t), {"retention_ratio": "auto"}, lambda i, s: within(s, t)),
    "bounded": lambda t: ({}, {"retention_ratio": AutoBudget(0.3, 0.4, t)}, lambda i, s: within(s, t, 0.3, 0.4)),
    "by video": lambda t: (
        {},
        {"retention_ratio": lambda n: [0.25, *[AutoBudget(0.01, 1.0, t)] * (n - 1)]},
        lambda i, s: within(s, t) if i else token_budget(s.numel(), 0.25),
    ),
    "frames": lambda t: (
        {},
        {"retention_ratio": AutoBudget(0.01, 1.0, t), "compressor": FramePrior("uniform")},
        lambda i, s: within(s, t),
    ),
}  # fmt: skip


@pytest.mark.spread(8)
@pytest.mark.parametrize(
    ("rows", "words"), [(RAGGED, True), (TWO_VIDEOS, False)], ids=["ragged", "two, words of kept frames"]
)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_scores_decide(family, budget, rows, words):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, rows, seed=2)
    scores = [video.token_scores for video in model.compress(**inputs, retention_ratio=0.5).videos]
    thresholds = torch.cat([some.flatten() for some in scores]).quantile(torch.tensor([0.7, 0.6, 0.5])).tolist()
    # The first by which the videos of this random model differ.
    threshold = next(one for one in thresholds if len({int((some > one).sum()) for some in scores}) > 1)
    settings, how, count = BUDGETS[budget](threshold)
    if callable(how["retention_ratio"]):
        how["retention_ratio"] = how["retention_ratio"](len(scores))
    model = CaCoVidForConditionalGeneration.from_backbone(
        stock, policy=model.policy, keep_frame_words=words, **settings
    )

    compressed = model.compress(**inputs, **how)
    assert [int(video.keep.sum()) for video in compressed.videos] == [count(i, some) for i, some in enumerate(scores)]
    for video, some in zip(compressed.videos, scores, strict=True):
        chosen = some.flatten().topk(int(video.keep.sum())).indices
        assert budget == "frames" or video.keep.flatten()[chosen].all()
        if budget == "frames":  # as many of each frame as the policy's own choice has of it
            best = torch.zeros(some.numel(), dtype=torch.bool)
            best[chosen] = True
            assert torch.equal(video.keep.sum(1), best.view(some.shape).sum(1))
    with pytest.raises(ValueError, match="is decided by the video's content"):
        model.kept_lengths(**inputs, **how)
    ours = model.generate(
        **inputs, **how, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    tokens, logits = CutPrompts(stock, inputs, compressed.kept_indices).greedy(STEPS)
    torch.testing.assert_close(torch.stack(ours.logits, dim=1), logits, atol=5e-4, rtol=1e-4)
    assert torch.equal(ours.sequences[:, -STEPS:], tokens)
