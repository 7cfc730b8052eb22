"""`select_tokens` against the published code's masks, a token-by-token reference of our own, and the promises about counts and ties."""

import itertools
import math

import pytest
import torch
from helpers.golden import golden

from cacovid_hf import select_tokens
from cacovid_hf.compressors.tools.selection import (
    contribution_budget,
    frame_budgets,
    largest_frame_budget,
    spread_tokens,
    top_tokens,
)
from cacovid_hf.policies.settings import SCOPES
from cacovid_hf.ratio import token_budget

INDEX, TENSORS = golden("select")


def difference(logits):
    return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("group", INDEX["groups"], ids=lambda group: group["name"])
def test_golden_masks(group):
    frames, height, width = group["thw"]
    tokens = frames * height * width
    token_scores = difference(TENSORS[f"{group['name']}.token_logits"]).view(frames, -1)
    frame_scores = difference(TENSORS[f"{group['name']}.frame_logits"])
    compared = 0
    for values in group["rows"]:
        row = dict(zip(INDEX["row_columns"], values, strict=True))
        ratio, share, largest, _ = INDEX["grid"][row["row"]]
        keep = select_tokens(token_scores, frame_scores, ratio, contribution_share=share, frame_cap=largest / ratio)
        golden = TENSORS[f"{group['name']}.mask"][row["row"]].view(frames, -1)
        assert keep.sum() == max(1, math.floor(ratio * tokens + 1e-9))
        enough = contribution_budget(tokens, ratio, share) >= frames
        if row["exact"] and enough:
            assert torch.equal(keep, golden > 0), row
            compared += 1
        elif enough and keep.sum() == (golden > 0).sum():
            # On a tie or on .5: the same number by contribution in all, and as good a sum of scores.
            kept = token_scores[golden == 1].sum()
            counts = frame_budgets(frame_scores, height * width, ratio, share, largest / ratio)
            if (row["round_half_margin"] or 0) > 1e-4:
                assert torch.equal((golden == 1).sum(1), counts)
                torch.testing.assert_close(
                    token_scores[top_tokens(token_scores, counts)].sum(), kept, atol=1e-4, rtol=1e-5
                )
    # Whole numbers as scores tie everywhere, and the published sort is not stable.
    assert compared >= 6 or group["dist"] == "integer_ties"


def one_token_at_a_time(frame_scores, tokens_per_frame, ratio, share, cap):
    """Steps 1 and 2 of the selection, moving single tokens, as the paper's correction is described."""
    frames = len(frame_scores)
    total = frames * tokens_per_frame
    budget = contribution_budget(total, ratio, share)
    largest_score = max(abs(s) for s in frame_scores) or 1.0
    weights = [math.exp(3 * s / largest_score) for s in frame_scores]
    weights = [w / sum(weights) for w in weights]
    weights = [min(max(w, 1 / (2 * frames)), cap / frames) for w in weights]
    weights = [w / sum(weights) for w in weights]
    largest = min(tokens_per_frame, math.floor(share * tokens_per_frame * cap * ratio + 1e-9))
    counts = [min(max(round(w * round(share * ratio * total)), 1), largest) for w in weights]
    while sum(counts) > budget:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < budget:
        counts[counts.index(min(counts))] += 1
    return counts


@pytest.mark.parametrize("cap", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_frame_budgets_equal_moving_single_tokens(share, cap):
    for frames, tokens, ratio in itertools.product((1, 2, 5, 16, 33), (1, 6, 25, 196), (0.05, 0.2, 0.25, 0.6, 0.95)):
        if contribution_budget(frames * tokens, ratio, share) < frames:
            continue
        for scores in (torch.randn(frames), torch.zeros(frames), torch.randn(frames) * 30, torch.arange(frames) * 1.0):
            counts = frame_budgets(scores, tokens, ratio, share, cap)
            assert counts.tolist() == one_token_at_a_time(scores.double().tolist(), tokens, ratio, share, cap), (
                frames,
                tokens,
                ratio,
            )
            assert counts.max() <= tokens


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_exact_counts_for_every_grid_ratio_and_score(share, scope):
    ratios = [1e-6, 0.01, 0.02, 0.05, 0.07, 0.1, 0.29, 0.3, 1 / 3, 0.5, 0.57, 0.75, 0.99, 1.0]
    for frames, tokens, ratio in itertools.product((1, 2, 7, 32), (1, 4, 35, 100), ratios):
        for token_scores in (
            torch.randn(frames, tokens),
            torch.zeros(frames, tokens),
            torch.full((frames, tokens), -1e30),
        ):
            keep = select_tokens(token_scores, token_scores[:, 0] * 0, ratio, contribution_share=share, scope=scope)
            assert keep.shape == (frames, tokens)
            assert keep.sum() == max(1, math.floor(ratio * frames * tokens + 1e-9)), (frames, tokens, ratio)


def test_budget_is_not_lost_to_float_products():
    assert token_budget(10, 0.3) == 3
    assert token_budget(100, 0.29) == 29
    assert token_budget(100, 0.57) == 57
    assert token_budget(3, 0.1) == 1
    assert contribution_budget(100, 0.58, 0.5) == 29


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert top_tokens(scores, torch.tensor([2, 3])).tolist() == [[False, True, True, False], [True, True, True, False]]
    keep = select_tokens(torch.zeros(4, 4), torch.zeros(4), 0.25, contribution_share=1.0)
    assert keep.tolist() == [[True, False, False, False]] * 4
    assert torch.equal(
        select_tokens(torch.zeros(4, 4), torch.zeros(4), 0.25, contribution_share=1.0, scope="video")
        .flatten()
        .nonzero()[:, 0],
        torch.arange(4),
    )


def test_scores_decide_where_the_budget_is_below_one_token_a_frame():
    frame_scores = torch.zeros(16)
    frame_scores[[3, 11, 14]] = torch.tensor([2.0, 3.0, 1.0])
    counts = frame_budgets(frame_scores, 36, 3 / (16 * 36), 1.0, 1.5)
    assert counts.nonzero()[:, 0].tolist() == [3, 11, 14]


def test_larger_scores_are_kept():
    token_scores, frame_scores = torch.randn(8, 36), torch.randn(8)
    keep = select_tokens(token_scores, frame_scores, 0.25, contribution_share=1.0)
    for frame in range(8):
        kept, dropped = token_scores[frame][keep[frame]], token_scores[frame][~keep[frame]]
        assert kept.min() > dropped.max()
    counts = keep.sum(1)
    assert counts[frame_scores.argmax()] > counts[frame_scores.argmin()]
    assert counts.max() <= math.floor(36 * 0.25 * 1.5)


def test_video_scope_ranks_all_tokens_at_once():
    token_scores, frame_scores = torch.randn(8, 36), torch.randn(8)
    keep = select_tokens(token_scores, frame_scores, 0.1, contribution_share=1.0, scope="video", frame_cap=0.01)
    total = (token_scores + frame_scores[:, None]).flatten()
    assert set(keep.flatten().nonzero()[:, 0].tolist()) == set(total.topk(28).indices.tolist())


def test_tokens_scope_ranks_all_tokens_whatever_their_frame():
    """Also where each frame score outweighs every token score."""
    token_scores, frame_scores = torch.randn(8, 36), torch.randn(8) * 100
    keep = select_tokens(token_scores, frame_scores, 0.1, contribution_share=1.0, scope="tokens", frame_cap=0.01)
    assert set(keep.flatten().nonzero()[:, 0].tolist()) == set(token_scores.flatten().topk(28).indices.tolist())
    half = select_tokens(token_scores, frame_scores, 0.1, contribution_share=0.5, scope="tokens").flatten()
    assert half[token_scores.flatten().topk(14).indices].all()


def test_the_rest_is_spread_evenly_over_the_tokens_not_kept():
    keep = torch.tensor([True, False, False, True, False, False, False])
    assert spread_tokens(keep, 2, 3).nonzero()[:, 0].tolist() == [0, 1, 3, 4, 6]
    assert torch.equal(spread_tokens(keep, 2, 0), keep)
    assert spread_tokens(keep, 2, 5).all()
    assert spread_tokens(keep, 2, 1).nonzero()[:, 0].tolist() == [0, 1, 3]
    # Positions on .5 or beyond what float32 can count must not fall together.
    huge = torch.zeros(3_000_000, dtype=torch.bool)
    assert spread_tokens(huge, 0, 2_999_999).sum() == 2_999_999


@pytest.mark.parametrize(
    ("frames", "tokens", "ratio", "share"),
    [(32, 729, 0.999, 0.0), (16, 1296, 0.9999, 0.5), (5000, 196, 0.999, 0.5), (32, 196, 0.9999, 0.0)],
)
def test_exact_counts_where_nearly_everything_is_kept(frames, tokens, ratio, share):
    """Steps near one: neighbours in the even spread must not fall together."""
    keep = select_tokens(torch.randn(frames, tokens), torch.randn(frames), ratio, contribution_share=share)
    assert keep.sum() == math.floor(ratio * frames * tokens + 1e-9)


def test_precision_of_the_scores_does_not_move_the_mask():
    token_scores, frame_scores = torch.randn(16, 49).bfloat16(), torch.randn(16).bfloat16()
    keep = select_tokens(token_scores, frame_scores, 0.15)
    assert torch.equal(keep, select_tokens(token_scores.double(), frame_scores.double(), 0.15))
    assert torch.equal(keep, select_tokens(token_scores.clone().requires_grad_(), frame_scores, 0.15))


@pytest.mark.gpu
def test_same_mask_on_another_device():
    for frames, tokens, ratio in itertools.product((1, 5, 32, 128), (4, 196), (0.02, 0.1, 0.25, 0.6)):
        for scale in (0.0, 1.0, 20.0):
            token_scores, frame_scores = torch.randn(frames, tokens) * scale, torch.randn(frames) * scale
            for scope in SCOPES:
                keep = select_tokens(token_scores, frame_scores, ratio, scope=scope)
                other = select_tokens(token_scores.cuda(), frame_scores.cuda(), ratio, scope=scope)
                assert torch.equal(keep, other.cpu())


GOOD = dict(token_scores=torch.zeros(2, 3), frame_scores=torch.zeros(2), retention_ratio=0.5)
BAD = [
    (dict(retention_ratio=0), r"retention_ratio=0\.0 is outside \(0, 1\]"),
    (dict(retention_ratio=1.1), r"retention_ratio=1\.1 is outside"),
    (dict(retention_ratio=float("nan")), "retention_ratio=nan is outside"),
    (dict(retention_ratio="half"), "retention_ratio='half' is not a number"),
    (dict(retention_ratio=True), "retention_ratio=True is not a number"),
    (dict(token_scores=torch.zeros(6)), r"token_scores has shape \(6,\)"),
    (dict(token_scores=torch.zeros(2, 0)), r"token_scores has shape \(2, 0\)"),
    (dict(frame_scores=torch.zeros(3)), "one frame score a frame"),
    (dict(token_scores=torch.tensor([[0.0, float("nan"), 1.0]] * 2)), "scores hold NaN"),
    (dict(frame_scores=torch.tensor([0.0, float("inf")])), "scores hold NaN or infinite"),
    (dict(contribution_share=1.5), r"contribution_share=1\.5 is outside \[0, 1\]"),
    (dict(frame_cap=0), r"frame_cap=0 is outside"),
    (dict(frame_cap="1"), r"frame_cap='1' is outside"),
    (dict(contribution_share=None), r"contribution_share=None is outside"),
    (dict(scope="clip"), "scope='clip' is unknown"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        select_tokens(**{**GOOD, **change})


def marked_by_sorting(scores, counts):
    """What `top_tokens` must mark, by a stable sort of every row."""
    marked = torch.zeros_like(scores, dtype=torch.bool)
    for row, values in enumerate(scores):
        marked[row, torch.sort(values, descending=True, stable=True).indices[: int(counts[row])]] = True
    return marked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_top_tokens_are_those_of_a_stable_sort(dtype, levels):
    """Ties, both zeros, both infinities, nothing and everything."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(-levels, levels + 1, (12, 30), generator=generator).to(dtype)
    if dtype.is_floating_point:
        scores = scores / 7
        scores[0, ::2] = -0.0
        scores[0, 1::2] = 0.0
        scores[1, 3], scores[1, 4], scores[1, 5] = float("inf"), float("-inf"), torch.finfo(dtype).tiny
    counts = torch.randint(0, 31, (12,), generator=generator)
    counts[:2] = torch.tensor([7, 2])
    counts[2:4] = torch.tensor([0, 30])
    expected = marked_by_sorting(scores, counts)
    assert torch.equal(top_tokens(scores, counts), expected)
    assert torch.equal(top_tokens(scores[4:], counts[4:], int(counts[4:].max())), expected[4:])
    for count in (0, 1, 11, 30):
        assert torch.equal(top_tokens(scores, count), marked_by_sorting(scores, torch.full((12,), count)))


@pytest.mark.parametrize(("frames", "tokens"), [(1, 5), (3, 4), (8, 36), (16, 9)])
@pytest.mark.parametrize("cap", [0.3, 1.0, 1.5, 20.0])
def test_no_frame_exceeds_its_bound(frames, tokens, cap):
    for ratio in (0.02, 0.1, 0.25, 0.5, 0.9, 0.99):
        for share in (0.2, 0.5, 1.0):
            settings = tokens, ratio, share, cap
            bound = largest_frame_budget(frames, *settings)
            for scores in (torch.zeros(frames), torch.randn(frames) * 10, torch.arange(frames).float()):
                assert int(frame_budgets(scores, *settings).max()) <= bound <= tokens
