"""Each method of others by itself: the numbers that its published code gave, and its rule as plain loops over single tokens."""

import itertools

import pytest
import torch
from helpers.golden import golden
from helpers.loops import cosine, features_like_a_video, peaks

from cacovid_hf.compressors import fastvid, flashvid, prunevid, visionzip
from cacovid_hf.compressors.divprune import farthest_points
from cacovid_hf.compressors.evs import change, published_count
from cacovid_hf.compressors.tools.counts import apportion, even_counts
from cacovid_hf.compressors.tools.density_peaks import density_peaks
from cacovid_hf.compressors.tools.segments import segment_lengths
from cacovid_hf.compressors.tools.selection import top_tokens
from cacovid_hf.compressors.vidcom2 import frame_ratios, quiet_channels, rounded_counts, typicality
from cacovid_hf.ratio import token_budget

PEERS, TENSORS = golden("peers")

# ------------------------------------------------------------------ published numbers


def cases(method):
    return [pytest.param(case, id=case["name"]) for case in PEERS["cases"] if case["method"] == method]


def golden_features(case, grid=(8, 36)):
    return TENSORS[case["features"]].float().view(*grid, -1)


@pytest.mark.parametrize("case", cases("DivPrune"))
def test_divprune_picks_the_published_tokens_in_order(case):
    picked = farthest_points(golden_features(case).flatten(0, 1), case["count"])
    assert torch.equal(picked, TENSORS[case["outputs"]["selection_order"]].long())


def test_divprune_is_the_published_loop_on_many_inputs():
    for seed, (size, width) in enumerate([(5, 3), (60, 8), (700, 16)]):
        units = torch.nn.functional.normalize(
            torch.randn(size, width, generator=torch.Generator().manual_seed(seed)), dim=-1
        )
        distance = 1 - units @ units.T
        picked = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(picked) < size // 2:
            picked.append(int(distance[picked].min(0).values.argmax()))
        # Far on, picks are as good as tied in float32.
        assert farthest_points(units * 3, size // 2)[:150].tolist() == picked[:150]


def test_divprune_picks_no_token_twice_among_equal_ones():
    assert farthest_points(torch.ones(7, 4), 7).tolist() == list(range(7))
    with pytest.raises(ValueError, match=r"count=8 is outside \[1, 7\]"):
        farthest_points(torch.ones(7, 4), 8)


@pytest.mark.parametrize("case", cases("VidCom2"))
def test_vidcom2_gives_the_published_scores_and_tokens(case):
    golden = {name: TENSORS[key] for name, key in case["outputs"].items()}
    features, ratio = golden_features(case), case["params"]["base_scale"]
    assert torch.equal(quiet_channels(features).sort().values, golden["low_var_channels_sorted"].long())
    video, frame = typicality(features)
    torch.testing.assert_close(video, golden["video_score"].view_as(video), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frame, golden["frame_score"].view_as(frame), atol=1e-5, rtol=1e-5)
    ratios = frame_ratios(video, ratio)
    torch.testing.assert_close(ratios, golden["frame_scales"].view_as(ratios), atol=1e-5, rtol=1e-4)
    counts = rounded_counts(ratios, 36)
    assert torch.equal(counts, golden["kept_per_frame"].long())
    keep = top_tokens(-(video + frame), counts)
    assert torch.equal(keep.flatten().nonzero()[:, 0], golden["kept_index"].long().sort().values)


@pytest.mark.parametrize("case", cases("EVS"))
def test_evs_gives_the_published_mask(case):
    features = golden_features(case)
    count = published_count(8, 36, case["params"]["q"])
    assert count == case["count"]
    keep = top_tokens(change(features).flatten(), count)
    assert torch.equal(keep, TENSORS[case["outputs"]["mask"]].bool())


def test_evs_counts_as_published():
    assert len(PEERS["evs_counts"]) > 200
    for row in PEERS["evs_counts"]:
        assert published_count(row["num_frames"], row["tokens_per_frame"], row["q"]) == row["count"]


# ------------------------------------------------------------------ shares


def test_shares_are_exact_within_bounds_and_in_proportion():
    assert even_counts(7, 3).tolist() == [2, 2, 3]
    assert apportion(torch.tensor([1.0, 2.0, 1.0]), 8, 100).tolist() == [2, 4, 2]
    assert apportion(torch.tensor([1.0, 1.0, 1.0]), 8, 100).tolist() == [3, 3, 2]
    assert apportion(torch.tensor([0.0, 9.0, 1.0]), 8, 6).tolist() == [0, 6, 2]
    assert apportion(torch.tensor([0.0, 9.0, 1.0]), 8, 6, least=1).tolist() == [1, 6, 1]
    generator = torch.Generator().manual_seed(0)
    for groups, most, least in itertools.product((1, 2, 7, 40), (1, 3, 10), (0, 1)):
        limits = torch.randint(least, most + 1, (groups,), generator=generator)
        for weights in (torch.rand(groups, generator=generator) ** 5, torch.ones(groups), torch.zeros(groups)):
            for total in range(least * groups, int(limits.sum()) + 1, 7):
                counts = apportion(weights, total, limits, least)
                assert counts.sum() == total, (weights, limits, total)
                assert bool((counts >= least).all() & (counts <= limits).all())


# ------------------------------------------------------------------ merging, against loops over single tokens


def test_density_peaks_by_loops():
    features = features_like_a_video(4, 11)
    generator = torch.Generator().manual_seed(3)
    valid = torch.rand(4, 11, generator=generator) < 0.8
    counts = torch.tensor([1, 2, 5, 0])
    for neighbours in (1, 4, 20, torch.tensor([1, 2, 3, 4])):
        centres, nearest = density_peaks(features, valid, counts, neighbours)
        for row in range(4):
            places = valid[row].nonzero()[:, 0]
            k = int(neighbours[row]) if isinstance(neighbours, torch.Tensor) else neighbours
            expected, labels = peaks(features[row, places], int(counts[row]), k) if counts[row] else ([], None)
            assert centres[row].nonzero()[:, 0].tolist() == sorted(places[expected].tolist())
            if labels is not None:
                assert nearest[row, places].tolist() == places[labels].tolist()


def test_density_peaks_of_equal_and_of_far_tokens():
    centres, _ = density_peaks(torch.ones(1, 5, 3), torch.tensor([[False, True, True, True, True]]), 3, 4)
    assert centres.tolist() == [[False, True, True, True, False]]
    # Densities of e^-1000 and less: no underflow into ties.
    far = torch.tensor([[[300.0], [90.0], [91.0], [0.0]]])
    centres, nearest = density_peaks(far, torch.ones(1, 4, dtype=torch.bool), 3, 2)
    assert centres.tolist() == [[False, True, True, True]]
    assert nearest.tolist() == [[2, 1, 2, 3]]


def test_segments():
    vectors = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1, 2])).float()
    vectors[0] += torch.tensor([0, 0.1, 0])
    assert segment_lengths(vectors, 1, 0.5) == [2, 3, 1]
    assert segment_lengths(vectors, 4, 0.5) == [1, 1, 3, 1]
    assert segment_lengths(vectors, 99, 0.5) == [1] * 6
    assert segment_lengths(vectors[:1], 8, 0.9) == [1]


def test_visionzip_by_loops():
    features = features_like_a_video(4, 13)
    generator = torch.Generator().manual_seed(1)
    attention, metric = torch.rand(4, 13, generator=generator), torch.randn(4, 13, 6, generator=generator)
    dominant, contextual = torch.tensor([3, 1, 4, 13]), torch.tensor([2, 3, 0, 0])
    found = visionzip.merge(features, attention, metric, dominant, contextual)
    for t in range(4):
        top = sorted(range(13), key=lambda i: -float(attention[t, i]))[: dominant[t]]
        rest = [i for i in range(13) if i not in top]
        targets = []
        if contextual[t]:
            step = max(1, len(rest) // int(contextual[t]))
            targets = rest[::step][: contextual[t]]
        assert found.keep[t].nonzero()[:, 0].tolist() == sorted(top + targets)
        members = {i: [] for i in targets}
        for i in rest if targets else []:
            if i not in targets:
                members[max(targets, key=lambda j: cosine(metric[t, i], metric[t, j]))].append(i)
        for i in top:
            assert torch.equal(found.features[t, i], features[t, i])
        for i, others in members.items():
            expected = features[t, i] + (features[t, others].mean(0) if others else 0)
            torch.testing.assert_close(found.features[t, i], expected)


def test_fastvid_by_loops():
    features = features_like_a_video(9, 12)
    generator = torch.Generator().manual_seed(2)
    saliency = torch.rand(9, 12, generator=generator)
    segments = [1, 6, 2]
    salient, context = fastvid.frame_counts(torch.full((9,), 5), segments, 12, 0.4, 4, False)
    assert salient.tolist() == [3] * 9
    assert context.tolist() == [2, 0, 6, 0, 0, 0, 6, 0, 4]
    found = fastvid.merge(features, saliency, segments, salient, context)
    start = 0
    for length in segments:
        frames = range(start, start + length)
        start += length
        top = {t: sorted(range(12), key=lambda i, t=t: -float(saliency[t, i]))[:3] for t in frames}
        others = [(t, i) for t in frames for i in range(12) if i not in top[t]]
        for t in frames:
            rest = [i for i in range(12) if i not in top[t]]
            centres = peaks(features[t, rest], int(context[t]), 4)[0] if context[t] else []
            targets = sorted(rest[c] for c in centres)
            assert found.keep[t].nonzero()[:, 0].tolist() == sorted(top[t] + targets)
            members = {i: [] for i in targets}
            for u, j in others if targets else []:
                members[max(targets, key=lambda i: cosine(features[u, j], features[t, i]))].append(features[u, j])
            for i, assigned in members.items():
                weight = max(1 / (len(assigned) + 1), 0.6)
                expected = weight * features[t, i] + (1 - weight) * torch.stack(assigned).mean(0)
                torch.testing.assert_close(found.features[t, i], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.02, 0.2, 0.5, 0.8, 0.97])
def test_fastvid_counts_are_exact_and_fit_their_frames(ratio):
    for frames, size in ((32, 196), (9, 12), (1, 5)):
        a_frame = even_counts(token_budget(frames * size, ratio), frames)
        for segments in ([frames], [1] * frames, [frames // 2, frames - frames // 2] if frames > 1 else [1]):
            salient, context = fastvid.frame_counts(a_frame, segments, size, 0.4, 4, True)
            assert (salient + context).sum() == token_budget(frames * size, ratio)
            assert bool(((salient >= 0) & (context >= 0) & (salient + context <= size)).all())


def test_flashvids_diverse_tokens_by_loops():
    features = features_like_a_video(3, 10)
    generator = torch.Generator().manual_seed(4)
    weights = torch.rand(3, 10, generator=generator)
    counts = torch.tensor([4, 0, 7])
    found = flashvid.diverse_tokens(features, weights, counts)
    for t in range(3):
        distance = [
            [(1 - cosine(features[t, i], features[t, j])) * float(weights[t, j]) for j in range(10)] for i in range(10)
        ]
        picked = [max(range(10), key=lambda j: sorted(distance[i][j] for i in range(10))[1])]
        while len(picked) < counts[t]:
            left = [j for j in range(10) if j not in picked]
            picked.append(max(left, key=lambda j: min(distance[i][j] for i in picked)))
        assert found[t].nonzero()[:, 0].tolist() == sorted(picked[: counts[t]])
    means = features.mean(1)
    relevance = flashvid.relevance(features, [2, 1])
    torch.testing.assert_close(relevance[1], features[1] @ (means[0] + means[1]) / 2)
    torch.testing.assert_close(relevance[2], features[2] @ means[2])


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.999])
def test_flashvids_trees_by_loops(threshold):
    features = features_like_a_video(9, 12)
    keep = torch.rand(9, 12, generator=torch.Generator().manual_seed(5)) < 0.3
    segments, counts = [1, 5, 3], torch.full((9,), 2)
    found = flashvid.merge_rest(features, keep, segments, counts, threshold, 7)
    start = 0
    for length in segments:
        frames = range(start, start + length)
        links = {}
        for t in frames[1:]:
            for i in (i for i in range(12) if not keep[t, i]):
                before = [j for j in range(12) if not keep[t - 1, j]]
                parent = max(before, key=lambda j: cosine(features[t, i], features[t - 1, j]))
                links[t, i] = (cosine(features[t, i], features[t - 1, parent]), (t - 1, parent))
        linked = sorted((key for key, (value, _) in links.items() if value > threshold), key=lambda key: -links[key][0])
        free = sum(int((~keep[t]).sum()) for t in frames)
        linked = linked[: free - 2 * length]
        sums = {(t, i): [features[t, i]] for t in frames for i in range(12) if not keep[t, i]}
        for key in sorted(linked, reverse=True):
            sums[links[key][1]] += sums.pop(key)
        roots = {key: torch.stack(values).mean(0) for key, values in sums.items()}
        left = [[i for i in range(12) if (t, i) in roots] for t in frames]
        clusters = apportion(torch.tensor([len(x) for x in left]), 2 * length, torch.tensor([len(x) for x in left]))
        for t, places, count in zip(frames, left, clusters.tolist(), strict=True):
            expected = {i: features[t, i] for i in range(12) if keep[t, i]}
            if count:
                points = torch.stack([roots[t, i] for i in places])
                centres, nearest = peaks(points, count, min(count, 7))
                for c in centres:
                    expected[places[c]] = points[[i for i, n in enumerate(nearest) if n == c]].mean(0)
            assert found.keep[t].nonzero()[:, 0].tolist() == sorted(expected)
            for i, value in expected.items():
                torch.testing.assert_close(found.features[t, i], value, atol=1e-5, rtol=1e-4)
        start += length


def test_prunevids_windows():
    assert prunevid.contiguous([1, 1, 1, 0, 0, 2, 2]) == [1, 1, 1, 0, 0, 2, 2]
    assert prunevid.contiguous([1, 1, 0, 2, 2, 2]) == [1, 1, 2, 2, 2, 2]  # a run of one, to the longer side
    assert prunevid.contiguous([1, 1, 0, 2, 2]) == [1, 1, 1, 2, 2]  # the left one at ties
    assert prunevid.contiguous([1, 1, 1, 0, 0, 1, 1, 2, 2]) == [1, 1, 1, 0, 0, 0, 0, 2, 2]  # a shorter run of label 1
    assert prunevid.contiguous([1, 1, 0, 0, 1, 1]) == [1, 1, 0, 0, 1, 1]  # equally long runs stay
    assert prunevid.contiguous([0, 3, 1, 1]) == [1, 1, 1, 1]  # one block, to the only side
    assert prunevid.contiguous([3, 1, 2]) == [0, 0, 0]
    features = features_like_a_video(12)
    lengths = prunevid.window_lengths(features.mean(1))
    assert sum(lengths) == 12
    assert prunevid.window_lengths(features.mean(1)[:1]) == [1]


@pytest.mark.parametrize("budget", [None, 3, 40, 100])
def test_prunevid_by_loops(budget):
    generator = torch.Generator().manual_seed(6)
    features = features_like_a_video(9, 18)
    # Half of the positions move.
    features[:, ::2] = torch.randn(9, 9, 16, generator=generator)
    windows = [3, 1, 5]
    still = prunevid.stillness(features, windows)
    found = prunevid.merge(features, windows, budget)

    starts, positions = [0, 3, 4], {}
    for w, (start, length) in enumerate(zip(starts, windows, strict=True)):
        for p in range(18):
            pairs = [
                cosine(features[start + a, p], features[start + b, p])
                for a in range(length)
                for b in range(length)
                if a != b
            ]
            if pairs:
                positions[w, p] = sum(pairs) / len(pairs)
                assert abs(positions[w, p] - float(still[w, p])) < 1e-5
            else:
                assert still[w, p] == -torch.inf
    static, saved = [], 0
    for (w, p), value in sorted(positions.items(), key=lambda item: -item[1]):
        if value <= 0.8 or (budget is not None and saved + windows[w] - 1 > 9 * 18 - budget):
            break
        static.append((w, p))
        saved += windows[w] - 1
    assert len(static) > 5 or budget is not None

    sets = []
    for w, (start, length) in enumerate(zip(starts, windows, strict=True)):
        places = [p for p in range(18) if (w, p) in static]
        sets.append((start, places, [features[start : start + length, p].mean(0) for p in places]))
    for t in range(9):
        w = 0 if t < 3 else 1 if t < 4 else 2
        places = [p for p in range(18) if (w, p) not in static]
        sets.append((t, places, [features[t, p] for p in places]))
    sizes = torch.tensor([len(places) for _, places, _ in sets])
    counts = [n // 2 if n > 14 else n for n in sizes.tolist()]
    if budget is not None:
        counts = apportion(sizes, budget, sizes).tolist()
    expected = {}
    for (t, places, values), count in zip(sets, counts, strict=True):
        if count:
            points = torch.stack(values)
            centres, nearest = peaks(points, count, 7)
            for c in centres:
                expected[t, places[c]] = points[[i for i, n in enumerate(nearest) if n == c]].mean(0)
    assert [tuple(place) for place in found.keep.nonzero().tolist()] == sorted(expected)
    assert budget is None or len(expected) == budget
    for (t, p), value in expected.items():
        torch.testing.assert_close(found.features[t, p], value, atol=1e-5, rtol=1e-4)
