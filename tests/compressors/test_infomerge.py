"""InfoMerge: `fastvid` without its additions, and each addition as plain loops."""

import pytest
import torch
from helpers.loops import cosine, features_like_a_video, peaks
from helpers.models import FAMILIES, IMAGE_AND_VIDEO, RAGGED, TWO_VIDEOS, prompt_inputs, wrapped

from cacovid_hf.compressors import InfoMerge, infomerge
from cacovid_hf.compressors.fastvid import FastVid, frame_counts
from cacovid_hf.prompt import Prompt, PromptLayout, TowerAttention, VideoSpan


@pytest.mark.parametrize("rows", [RAGGED, TWO_VIDEOS, IMAGE_AND_VIDEO], ids=["ragged", "two videos", "image beside"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_additions_it_is_fastvid_bit_for_bit(family, rows):
    stock, model = wrapped(family)
    prompt = model.embed(**prompt_inputs(stock, rows), with_tower_attention=True)
    plain = InfoMerge(rho=0, alpha=0, beta=0)
    for ratio in (0.01, 0.1, 0.3, 0.5, 0.95):
        expected = model.compress_prompt(prompt, retention_ratio=ratio, compressor=FastVid())
        ours = model.compress_prompt(prompt, retention_ratio=ratio, compressor=plain)
        assert torch.equal(ours.kept_indices, expected.kept_indices)
        assert torch.equal(ours.inputs_embeds, expected.inputs_embeds)


def test_each_addition_changes_what_is_kept():
    features = features_like_a_video(12, 16)
    generator = torch.Generator().manual_seed(1)
    queries, keys = (torch.randn(12, 2, 16, 4, generator=generator) for _ in range(2))
    embeds = torch.cat([torch.zeros(1, 16), features.flatten(0, 1), torch.ones(1, 16)])[None]
    span = VideoSpan(0, (12, 4, 4), torch.arange(1, 193))
    everywhere = torch.ones(1, 194, dtype=torch.bool)
    layout = PromptLayout(everywhere, everywhere.clone().index_fill_(1, span.positions, False), (span,))
    tower = TowerAttention(queries, keys, lambda values: values)
    prompt = Prompt(layout, torch.zeros(1, 194, dtype=torch.long), embeds, torch.arange(194)[None], (tower,))

    def kept(**settings):
        settings = {"rho": 0.0, "alpha": 0.0, "beta": 0.0, "min_segments": 3, "threshold": 0.5} | settings
        found = InfoMerge(**settings, anchor_stride=2).select_at(prompt, span, None, 0.5, 96)
        assert found.keep.sum() == 96
        return found.keep

    plain = kept()
    for ratio in (0.1, 0.5, 0.9):
        arguments = (prompt, span, None, ratio, int(192 * ratio))
        ours = InfoMerge(rho=0, alpha=0, beta=0, min_segments=3, anchor_stride=2).select_at(*arguments)
        theirs = FastVid(min_segments=3, anchor_stride=2).select_at(*arguments)
        assert torch.equal(ours.keep, theirs.keep)
        assert torch.equal(ours.features, theirs.features)
    assert not torch.equal(kept(rho=0.5), plain)
    for settings in ({"alpha": 0.9, "tau": 5.0}, {"beta": 0.9, "tau": 5.0}):
        assert not torch.equal(kept(**settings).sum(1), plain.sum(1))  # other counts
    assert not torch.equal(kept(rho=0.5), kept(rho=0.5, penalty=0.0))


def test_settings_of_a_ratio():
    assert infomerge.published_settings(0.01) == infomerge.published_settings(0.05) == (2.0, 0.05)
    assert infomerge.published_settings(0.1) == (1.2, 0.1)
    assert infomerge.published_settings(0.15) == infomerge.published_settings(0.9) == (1.2, 0.09)
    assert infomerge.published_settings(0.075) == pytest.approx((1.6, 0.075))
    for settings in ({"rho": 2}, {"context_share": -1}, {"anchor_stride": 0}, {"static": "none"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            InfoMerge(**settings)


@pytest.mark.parametrize("measure", ["tfd", "difference"])
def test_static_places_by_loops(measure):
    features = features_like_a_video(8, 10)
    found = infomerge.static_places(features, [1, 5, 2], 3, measure)
    assert not found[0].any()  # one frame
    for row, frames in ((1, range(1, 6)), (2, range(6, 8))):
        number = len(frames)
        changed = []
        for p in range(10):
            like = [[cosine(features[a, p], features[b, p]) for b in frames] for a in frames]
            if measure == "tfd":
                steps = [abs(like[a + 1][b] - like[a][b]) for a in range(number - 1) for b in range(number)]
                changed.append(sum(steps) / ((number - 1) * number))
            else:
                changed.append(sum(1 - like[a + 1][a] for a in range(number - 1)))
        expected = sorted(range(10), key=lambda p: changed[p])[:3]
        assert found[row].nonzero()[:, 0].tolist() == sorted(expected)


def test_weights_of_segments():
    # Two segments of like frames along X, one along Y: the mean is nearer to X.
    x, y = [1.0, 0, 0], [0, 1.0, 0]
    features = torch.tensor([[x, x], [x, x], [y, y]])
    distance = torch.tensor([1 - 2 / 5**0.5, 1 - 1 / 5**0.5], dtype=torch.float64)  # of (2, 1, 0) / 3 from X and Y
    z = (distance - distance.mean()) / distance.std(correction=0)
    assert z.tolist() == pytest.approx([-1, 1])
    weights = infomerge.segment_weights(features, [2, 1], 2.0, 0.5, 0.0)
    assert weights.tolist() == pytest.approx(torch.sigmoid(z).tolist())
    # Equal segments, and a single one: no z-scores.
    assert infomerge.segment_weights(features[:2], [1, 1], 2.0, 0.9, 0.1).tolist() == [0.5, 0.5]
    assert infomerge.segment_weights(features, [3], 2.0, 0.9, 0.1).tolist() == [0.5]


def test_entropy_of_a_spectrum():
    two = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert float(infomerge.spectral_entropy(two)) == pytest.approx(1)  # both directions alike, of two possible
    assert float(infomerge.spectral_entropy(two[:1].expand(2, 3))) == pytest.approx(0, abs=1e-5)
    for shape in ((4, 9), (9, 4)):
        tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        shares = torch.linalg.svdvals(tokens).square()
        shares = shares / shares.sum()
        expected = -(shares * shares.log()).sum() / torch.tensor(4.0).log()
        torch.testing.assert_close(infomerge.spectral_entropy(tokens), expected, atol=1e-5, rtol=1e-4)


def test_merging_once_by_loops():
    features = features_like_a_video(9, 12)
    generator = torch.Generator().manual_seed(2)
    saliency = torch.rand(9, 12, generator=generator)
    segments = [1, 6, 2]
    is_static = torch.zeros(3, 12, dtype=torch.bool)
    is_static[1, [0, 3, 4, 7, 9, 11]] = is_static[2, [1, 2]] = True
    salient, context = frame_counts(torch.full((9,), 5), segments, 12, 0.4, 2, True)
    assert context[1:7].tolist() == [0, 4, 0, 4, 0, 4]
    found = infomerge.merge_once(features, saliency, is_static, segments, salient, context)
    start = 0
    for k, length in enumerate(segments):
        frames = range(start, start + length)
        start += length
        static = set(is_static[k].nonzero()[:, 0].tolist())
        mean = features[list(frames)].mean(0)
        once, top, seen = features.clone(), {}, set()
        for t in frames:
            spread = float(saliency[t].std(correction=0))
            value = [float(saliency[t, i]) - (12 * spread if i in seen else 0) for i in range(12)]
            top[t] = sorted(range(12), key=lambda i, value=value: -value[i])[: salient[t]]
            seen |= static & set(top[t])
            for i in seen:
                once[t, i] = mean[i]
        others = [(t, i) for t in frames for i in range(12) if i not in top[t]]
        used = set()
        for t in frames:
            rest = [i for i in range(12) if i not in top[t]]
            count = int(context[t])
            order = peaks(once[t, rest], len(rest), 4)[0] if count else []
            order = [rest[c] for c in order]
            targets = sorted(([i for i in order if i not in used] + [i for i in order if i in used])[:count])
            used |= static & set(targets)
            assert found.keep[t].nonzero()[:, 0].tolist() == sorted(top[t] + targets)
            for i in top[t]:
                torch.testing.assert_close(found.features[t, i], once[t, i])
            members = {i: [] for i in targets}
            for u, j in others if targets else []:
                members[max(targets, key=lambda i: cosine(once[u, j], once[t, i]))].append(once[u, j])
            for i, assigned in members.items():
                own = 0.6 if assigned else 1.0
                expected = own * once[t, i] + (1 - own) * (torch.stack(assigned).mean(0) if assigned else 0)
                torch.testing.assert_close(found.features[t, i], expected, atol=1e-5, rtol=1e-4)
