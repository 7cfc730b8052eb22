"""GleanVID: every step against linear algebra written out token by token."""

import pytest
import torch
from helpers.loops import cosine, features_like_a_video

from cacovid_hf.compressors import GleanVid, gleanvid


def test_the_first_direction_is_that_of_the_singular_values():
    features = features_like_a_video(6, 20)
    tokens = features.flatten(0, 1).double()
    centred = tokens - tokens.mean(0)
    first = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    expected = tokens - (centred @ first)[:, None] * first
    found = gleanvid.without_first_direction(features)
    torch.testing.assert_close(found.flatten(0, 1), expected.float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.mean((0, 1)), features.mean((0, 1)))
    assert torch.equal(gleanvid.without_first_direction(torch.ones(2, 3, 4)), torch.ones(2, 3, 4))


def test_cells_at_the_edges_are_smaller():
    frame = torch.arange(15.0).view(1, 15, 1)  # 3 rows of 5
    assert gleanvid.cell_means(frame, (3, 5))[0, ..., 0].tolist() == [[3, 5, 6.5], [10.5, 12.5, 14]]


def test_novelty_by_projections():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(19, 5 * 6, 40, generator=generator)
    found = gleanvid.novelty(features, (5, 6))
    cells = gleanvid.cell_means(features, (5, 6)).double()
    assert float(found[0]) == pytest.approx(float(cells[0].norm(dim=-1).sum()))
    for t in (1, 5, 16, 18):
        total = 0.0
        for y in range(3):
            for x in range(3):
                near = [(v, u) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2) if 0 <= v < 3 and 0 <= u < 3]
                basis = torch.stack([cells[t - 1, v, u] for v, u in near])
                gram = basis @ basis.T
                ridge = 1e-4 * gram.trace() / len(near) * torch.eye(len(near))
                weights = torch.linalg.solve(gram + ridge, basis @ cells[t, y, x])
                total += float((cells[t, y, x] - weights @ basis).norm())
        assert float(found[t]) == pytest.approx(total, rel=1e-4)


def test_shares_of_frames():
    assert gleanvid.frame_shares(torch.ones(4)).tolist() == pytest.approx([0.25] * 4)
    assert gleanvid.frame_shares(torch.zeros(4)).tolist() == pytest.approx([0.25] * 4)
    # Gini of (3, 1): |3/4 - 1/4| twice over 2 * 2 = 0.25, so that half of the budget is even.
    assert gleanvid.frame_shares(torch.tensor([3.0, 1.0])).tolist() == pytest.approx([0.25 + 0.375, 0.25 + 0.125])


def test_salience_by_loops():
    features = features_like_a_video(2, 15)
    found = gleanvid.salience(features, (3, 5))
    for t in range(2):
        for y in range(3):
            for x in range(5):
                cell = [
                    v * 5 + u
                    for v in range(y // 2 * 2, min(y // 2 * 2 + 2, 3))
                    for u in range(x // 2 * 2, min(x // 2 * 2 + 2, 5))
                ]
                own = features[t, y * 5 + x]
                more = cosine(own, features[t, cell].mean(0)) - cosine(own, features[t].mean(0))
                expected = torch.tensor(4 * more).exp().log1p() / 4
                torch.testing.assert_close(found[t, y * 5 + x], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("counts", [[3, 0, 5, 2], [12, 12, 1, 4]])
def test_gleaning_by_projections(counts):
    generator = torch.Generator().manual_seed(4)
    debiased = torch.randn(4, 12, 30, generator=generator)
    debiased[1, :6] = debiased[0, :6]  # nothing new
    salience = torch.rand(4, 12, generator=generator)
    found = gleanvid.glean(debiased.clone(), salience, counts)
    kept = torch.zeros(0, 30, dtype=torch.float64)
    for t, count in enumerate(counts):
        tokens = debiased[t].double()
        left = tokens
        if len(kept):
            directions = torch.linalg.svd(kept, full_matrices=False).Vh[: int(torch.linalg.matrix_rank(kept))]
            left = tokens - tokens @ directions.T @ directions
        left = left.norm(dim=-1)
        scaled = [(v - v.min()) / (v.max() - v.min()) for v in (salience[t].double(), left)]
        order = (scaled[0] + scaled[1]).argsort(descending=True)[:count]
        assert found[t].nonzero()[:, 0].tolist() == sorted(order.tolist())
        kept = torch.cat([kept, tokens[order]])


def test_a_frame_without_news_is_chosen_by_salience_and_not_by_rounding():
    generator = torch.Generator().manual_seed(5)
    frame = torch.randn(12, 30, generator=generator)
    salience = torch.rand(3, 12, generator=generator)
    found = gleanvid.glean(torch.stack([frame, frame, frame]), salience, [12, 4, 4])
    for t in (1, 2):
        assert found[t].nonzero()[:, 0].tolist() == sorted(salience[t].argsort(descending=True)[:4].tolist())


def test_settings_out_of_range():
    for settings in ({"least_even_share": 0.9}, {"even_share": 1.5}, {"sharpness": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            GleanVid(**settings)
