"""SimpleCluster: its rotation and its rounds, as plain loops."""

import math

import pytest
import torch
from helpers.loops import features_like_a_video
from torch.nn.functional import normalize

from cacovid_hf.compressors import SimpleCluster
from cacovid_hf.compressors.simplecluster import rotated, spherical_means


def test_rotation_by_position():
    features = torch.arange(1.0, 15.0).expand(2 * 2 * 3, 14)  # 14 channels: 4 each for time, height, width; two stay
    found = rotated(features, (2, 2, 3)).view(2, 2, 3, 14)
    for place in ((0, 0, 0), (1, 0, 2), (1, 1, 1)):
        expected = list(range(1, 15))
        for axis, at in enumerate(place):
            for pair in range(2):
                one, two = 4 * axis + pair, 4 * axis + pair + 2
                angle = at * 10000 ** (-pair / 2)
                a, b = one + 1, two + 1
                expected[one] = a * math.cos(angle) - b * math.sin(angle)
                expected[two] = a * math.sin(angle) + b * math.cos(angle)
        assert found[place].tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), features.norm(dim=-1).view(2, 2, 3))


def loops(units, count, rounds):
    """k-means by loops; an empty cluster, first to last, takes the worst served token that is not the best served of its own."""
    points = units.double()
    centres = [points[i * len(points) // count] for i in range(count)]
    for _ in range(rounds):
        cosines = [[float(point @ centre) for centre in centres] for point in points]
        cluster = [row.index(max(row)) for row in cosines]
        served = [round(row[c] * 2**16) for row, c in zip(cosines, cluster, strict=True)]
        members = {c: [i for i, own in enumerate(cluster) if own == c] for c in range(count)}
        best = {max(m, key=lambda i: (served[i], -i)) for m in members.values() if m}
        worst = sorted((i for i in range(len(points)) if i not in best), key=lambda i: (served[i], i))
        for c, token in zip([c for c in range(count) if not members[c]], worst, strict=False):
            cluster[token] = c
        centres = [
            normalize(points[[i for i, own in enumerate(cluster) if own == c]].mean(0), dim=0) for c in range(count)
        ]
    served = [round(float(point @ centres[c]) * 2**16) for point, c in zip(points, cluster, strict=True)]
    nearest = [
        max((i for i, own in enumerate(cluster) if own == c), key=lambda i: (served[i], -i)) for c in range(count)
    ]
    return cluster, nearest


@pytest.mark.parametrize("count", [1, 4, 20, 53])
def test_rounds_by_loops(count):
    units = normalize(features_like_a_video(6, 9).flatten(0, 1), dim=-1)
    for rounds in (1, 5):
        cluster, nearest = spherical_means(units, count, rounds)
        assert (cluster.tolist(), nearest.tolist()) == loops(units, count, rounds)


def test_no_cluster_is_ever_empty():
    units = normalize(torch.ones(7, 4), dim=-1)
    units[5] = torch.tensor([1.0, 0, 0, 0])
    for count in range(1, 8):
        cluster, nearest = spherical_means(units, count, 3)
        assert cluster.unique().tolist() == list(range(count))
        assert nearest.unique().numel() == count
        assert cluster[nearest].tolist() == list(range(count))


def test_settings_out_of_range():
    for settings in ({"rounds": 0}, {"rounds": True}, {"output": "sum"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            SimpleCluster(**settings)
