"""MARC's merging of frames as plain loops, and the choice of clips."""

import pytest
import torch
from helpers.loops import cosine, features_like_a_video
from helpers.models import BY_NAME, FAMILIES, RAGGED, prompt_inputs, wrapped

from cacovid_hf.compressors import Attention, Marc
from cacovid_hf.compressors.marc import best_clips, merge_frames


def loops(features, shares, budget):
    """Frames merged by loops: the mask and the features of what is left."""
    size = features.shape[1]
    whole = max(1, budget // size)
    clip = [c for c, (length, _) in enumerate(shares) for _ in range(length)]
    line = [(t, features[t], clip[t]) for t in range(len(features))]
    merges = [length - left for length, left in shares]
    last = None
    while len(line) > whole:
        inside = any(merges)
        pairs = [
            i for i in range(len(line) - 1) if not inside or (line[i][2] == line[i + 1][2] and merges[line[i][2]] > 0)
        ]
        alike = {i: sum(cosine(a, b) for a, b in zip(line[i][1], line[i + 1][1], strict=True)) for i in pairs}
        i = max(pairs, key=lambda i: (alike[i], -i))
        if inside:
            merges[line[i][2]] -= 1
        last = (line[i], (line[i][1] - line[i + 1][1]).norm(dim=-1))
        line[i : i + 2] = [(line[i + 1][0], (line[i][1] + line[i + 1][1]) / 2, line[i + 1][2])]
    expected = {(t, p): frame[p] for t, frame, _ in line for p in range(size)}
    if budget < size:
        t, frame, _ = line[0]
        far = (frame - frame.mean(0)).norm(dim=-1)
        expected = {(t, int(p)): frame[p] for p in far.argsort(descending=True)[:budget]}
    elif budget > whole * size:
        (t, frame, _), changed = last
        for p in changed.argsort(descending=True)[: budget - whole * size]:
            expected[t, int(p)] = frame[p]
    return expected


@pytest.mark.parametrize("budget", [1, 5, 12, 13, 30, 60, 77, 107])
def test_by_loops(budget):
    features = features_like_a_video(9, 12)
    lengths = [4, 4, 1]
    # Frames in proportion to the clips' lengths, at least one each, never fewer than clips: worked by hand.
    shares = {3: [1, 1, 1], 5: [2, 2, 1], 6: [3, 2, 1], 8: [4, 3, 1]}[max(3, budget // 12)]
    found = merge_frames(features, lengths, budget)
    expected = loops(features, list(zip(lengths, shares, strict=True)), budget)
    assert {tuple(place) for place in found.keep.nonzero().tolist()} == set(expected)
    assert len(expected) == budget
    for (t, p), value in expected.items():
        torch.testing.assert_close(found.features[t, p], value, atol=1e-5, rtol=1e-4)


def test_clips_are_merged_within_before_they_are_merged_together():
    """Frames 1 and 2 are equal but of two clips: the pair within a clip goes first, though less alike."""
    a, b, c, d = [1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0], [0, 0, 1.0]
    features = torch.tensor([[a], [b], [c], [d]])
    assert merge_frames(features, [2, 2], 2).keep[:, 0].tolist() == [False, True, False, True]
    assert merge_frames(features, [4], 3).keep[:, 0].tolist() == [True, False, True, True]


def test_the_best_clips():
    scores = torch.tensor([1, 1, 9, 0, 4, 5, 2])
    lengths = [2, 1, 3, 1]  # means 1, 9, 3, 2
    assert best_clips(scores, lengths, 1, 1) == [1]
    assert best_clips(scores, lengths, 2, 1) == [1, 2]
    assert best_clips(scores, lengths, 3, 1) == [1, 2, 3]
    assert best_clips(scores, lengths, 9, 1) == [0, 1, 2, 3]
    assert best_clips(scores, lengths, 1, 3) == [1, 2]  # one frame does not hold the budget
    assert best_clips(torch.ones(4), [1, 1, 2], 1, 1) == [0]


# The tiny models of these families attend in layer 2 alone.
PRIOR = {(family, "attention"): Attention(layer=2) for family in FAMILIES if not BY_NAME[family].attends}


@pytest.mark.parametrize("by", ["cacovid", "attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_clips_of_the_learnt_scores(family, by):
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, RAGGED)
    method = Marc(clips=1, clips_by=by)
    for ratio in (0.1, 0.4, 0.9):
        compressed = model.compress(**inputs, retention_ratio=ratio, compressor=method)
        for video in compressed.videos:
            span = video.span
            budget = max(1, int(ratio * span.num_tokens + 1e-9))
            assert video.keep.sum() == budget
            # Every frame is a clip here: as few are left as hold the budget.
            assert video.keep.any(1).sum() == -(-budget // span.tokens_per_frame)
    chosen = [v.keep.any(1).tolist() for v in model.compress(**inputs, retention_ratio=0.1, compressor=method).videos]
    alone = model.compress(**inputs, retention_ratio=0.1, compressor=PRIOR.get((family, by), by))
    for video, frames in zip(alone.videos, chosen, strict=True):
        score = video.keep.sum(1) if by == "cacovid" else video.frame_scores
        assert frames[int(score.argmax())]


def test_settings_out_of_range():
    for settings in ({"clips": 0}, {"clips": True}, {"clips_by": "uniform"}, {"min_clips": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Marc(**settings)
