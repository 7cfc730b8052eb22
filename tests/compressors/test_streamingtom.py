"""StreamingTOM's reduction, worked by hand and as plain loops."""

import pytest
import torch
from helpers.loops import cosine, features_like_a_video, peaks

from cacovid_hf.compressors import StreamingTom
from cacovid_hf.compressors.streamingtom import reduce_frames

X, Y, Z = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]


def test_a_small_video_by_hand():
    # The second frame: places 0 to 2 stand still, place 3 changes from X to Z; two of its four tokens are kept.
    features = torch.tensor([[X, X, Y, X], [X, X, Y, Z]])
    attention = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.9, 0.8, 0.7, 0.1]])
    found = reduce_frames(features, attention, torch.tensor([2, 2]))
    assert found.keep[0].nonzero()[:, 0].tolist() == [1, 2]  # all is change: the most attended
    # floor(2 * 3 / 4) = 1 cluster of the still ones, and the changed one in spite of its attention.
    assert found.keep[1].nonzero()[:, 0].tolist() == [0, 3]
    # X 0.6 times, and 0.4 times the mean of X and Y.
    torch.testing.assert_close(found.features[1, 0], torch.tensor([0.8, 0.2, 0]))
    assert torch.equal(found.features[1, 3], features[1, 3])
    # One token: no cluster, all that stands still goes.
    assert reduce_frames(features, attention, torch.tensor([0, 1])).keep.nonzero().tolist() == [[1, 3]]


def test_centres_are_far_from_denser_tokens_and_not_from_less_dense_ones():
    """Three at the left, two at the right: by the published, inverted rule both centres are among the three."""
    points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.3]])
    features = torch.cat([points, torch.ones(5, 1)], dim=1).expand(2, 5, 2)
    found = reduce_frames(features, torch.rand(2, 5), torch.tensor([5, 2]), num_neighbours=2)
    left, right = found.keep[1, :3].sum(), found.keep[1, 3:].sum()
    assert (int(left), int(right)) == (1, 1)


@pytest.mark.parametrize("count", [1, 5, 9, 12])
def test_by_loops(count):
    features = features_like_a_video(6, 12)
    features[1:4, ::2] = features[0, ::2] + 0.05 * features[1:4, ::2]
    attention = torch.rand(6, 12, generator=torch.Generator().manual_seed(3))
    found = reduce_frames(features, attention, torch.full((6,), count))
    clusters_seen = 0
    for t in range(6):
        static = [i for i in range(12) if t and cosine(features[t, i], features[t - 1, i]) > 0.9]
        dynamic = [i for i in range(12) if i not in static]
        clusters = count * len(static) // 12
        clusters_seen += clusters
        expected = {i: features[t, i] for i in sorted(dynamic, key=lambda i: -attention[t, i])[: count - clusters]}
        if clusters:
            centres, nearest = peaks(features[t, static], clusters, max(1, min(7, len(static) - 1)))
            for c in centres:
                members = [features[t, static[i]] for i, n in enumerate(nearest) if n == c and i != c]
                own = features[t, static[c]]
                expected[static[c]] = 0.6 * own + 0.4 * torch.stack(members).mean(0) if members else own
        assert found.keep[t].nonzero()[:, 0].tolist() == sorted(expected)
        for i, value in expected.items():
            torch.testing.assert_close(found.features[t, i], value, atol=1e-5, rtol=1e-4)
    assert (clusters_seen > 0) == (count > 1)


def test_frames_in_parts_are_those_of_the_whole():
    features, attention = features_like_a_video(9, 12), torch.rand(9, 12)
    counts = torch.tensor([3, 4, 5] * 3)
    whole = reduce_frames(features, attention, counts)
    for stop in (1, 4):
        first = reduce_frames(features[:stop], attention[:stop], counts[:stop])
        then = reduce_frames(features[stop:], attention[stop:], counts[stop:], before=features[stop - 1])
        assert torch.equal(torch.cat([first.keep, then.keep]), whole.keep)
        torch.testing.assert_close(torch.cat([first.features, then.features])[whole.keep], whole.features[whole.keep])


def test_settings_out_of_range():
    for settings in ({"own_weight": 1.5}, {"num_neighbours": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            StreamingTom(**settings)
