"""What makes room in a stream's memory, as plain loops, and what a frame sees of those before it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.streams import QUESTION, pictures, whole_prompt
from torch.nn.functional import cosine_similarity

from cacovid_hf.generation.stream.layers import Layers


def scenes(count):
    """Pictures of which a part changes, now little and now much."""
    shown = pictures(1, 7).repeat(count, 0)
    rng = np.random.default_rng(1)
    for i in range(1, count):
        shown[i] = shown[i - 1]
        width = int(rng.choice([4, 16, 40]))
        shown[i, :, :width] = rng.integers(0, 256, shown[i, :, :width].shape)
    return shown


def by_loops(rule, groups, capacity):
    """Groups as lists of (frame, place, feature, worth), one joined pair at a time."""
    size = len(groups[0])

    def loss(one, two):
        if rule == "contribution":
            return sum(sorted((t[3] for t in one + two), reverse=True)[size:])
        pairs = [(a[2], b[2]) for a in one for b in two if a[1] == b[1]]
        if pairs:
            return 1 - sum(float(cosine_similarity(a, b, dim=0)) for a, b in pairs) / size
        means = [torch.stack([t[2] for t in group]).mean(0) for group in (one, two)]
        return 2 - float(cosine_similarity(*means, dim=0))

    def merged(one, two):
        if rule == "alike":
            places = {t[1]: t for t in one}
            two = [
                (f, p, (x + places[p][2]) / 2, max(w, places[p][3])) if p in places else (f, p, x, w)
                for f, p, x, w in two
            ]
            one = [t for t in one if t[1] not in {u[1] for u in two}]
        every = one + two
        best = sorted(range(len(every)), key=lambda i: -every[i][3])[:size]
        return [every[i] for i in sorted(best)]

    line = []
    for group in groups:
        line.append(group)
        if len(line) > capacity:
            if rule == "oldest":
                del line[0]
                continue
            losses = [loss(line[i], line[i + 1]) for i in range(len(line) - 1)]
            i = losses.index(min(losses))
            line[i : i + 2] = [merged(line[i], line[i + 1])]
    return line


@pytest.mark.parametrize("rule", ["oldest", "alike", "contribution"])
def test_rules_by_loops(streaming, rule):
    model, processor = streaming
    count = 18 * model.family.frames_per_step(model.backbone.config)
    settings = dict(tokens_per_frame=3, bits=32, when_full=rule)
    if rule == "contribution":
        settings |= dict(reducer="cacovid", standing=[QUESTION, "red square"])
    every = model.stream(processor, **settings)
    every.feed(scenes(count))
    width, dtype = every._memory.width, torch.float32
    steps = [
        list(zip(g.frames.tolist(), g.places.tolist(), g.features(dtype, width), g.worth.tolist(), strict=True))
        for g in every._memory.groups.items
    ]
    stream = model.stream(processor, max_memory=5 * every._memory.group_bytes, **settings)
    stream.feed(scenes(count))
    expected = by_loops(rule, steps, 5)
    found = stream._memory.groups.items
    assert [list(zip(g.frames.tolist(), g.places.tolist(), strict=True)) for g in found] == [
        [t[:2] for t in group] for group in expected
    ]
    for group, tokens in zip(found, expected, strict=True):
        torch.testing.assert_close(
            group.features(dtype, width), torch.stack([t[2] for t in tokens]), atol=1e-5, rtol=1e-4
        )
        assert group.worth.tolist() == [t[3] for t in tokens]


def test_the_rule_of_keys_by_loops(streaming):
    """The two neighbours with the most alike mean keys become the later one."""
    model, processor = streaming
    count = 14 * model.family.frames_per_step(model.backbone.config)
    # A window of one frame, so that no group depends on what the rule let go.
    settings = dict(memory="kv", tokens_per_frame=2, window=2, bits=32, when_full="alike")
    every = model.stream(processor, **settings)
    every.feed(scenes(count))
    line = []
    for group in every._memory.groups.items:
        line.append(group)
        if len(line) > 5:
            like = [float(cosine_similarity(a.keys.float(), b.keys.float(), dim=-1).mean()) for a, b in pairwise(line)]
            del line[like.index(max(like))]
    memory = every._memory
    most = memory.first.nbytes + 5 * memory.group_bytes
    stream = model.stream(processor, max_memory=most, **settings)
    stream.feed(scenes(count))
    assert [int(g.frames[0]) for g in stream._memory.groups.items] == [int(g.frames[0]) for g in line]


def test_frames_are_reduced_as_in_the_whole_video(streaming):
    """A frame needs the frame before, and nothing else, of what went by."""
    model, processor = streaming
    per_step = model.family.frames_per_step(model.backbone.config)
    shown = scenes(8 * per_step)
    stream = model.stream(processor, tokens_per_frame=3, bits=32)
    stream.feed(shown)
    inputs = whole_prompt(processor, shown)
    (span,) = model.embed(**inputs).layout.videos
    ratio = 3 * span.num_frames / span.num_tokens
    (video,) = model.compress(**inputs, retention_ratio=ratio, compressor="streamingtom").videos
    assert video.keep.sum() == 3 * span.num_frames
    places = [row.nonzero()[:, 0].tolist() for row in video.keep]
    assert [g.places.tolist() for g in stream._memory.groups.items] == places
    alone = []  # or what went before would have no say
    for step in range(8):
        one = model.stream(processor, tokens_per_frame=3, bits=32)
        one.feed(shown[step * per_step : (step + 1) * per_step])
        alone.append(one._memory.groups.items[0].parts["codes"])
    assert not all(torch.equal(a, g.parts["codes"]) for a, g in zip(alone, stream._memory.groups.items, strict=True))


def test_a_frame_reads_the_last_ones(streaming, monkeypatch):
    model, processor = streaming
    stream = model.stream(processor, memory="kv", tokens_per_frame=2, window=6, bits=32)
    read = []

    def noted(self, embeds, positions, behind, stock=Layers.read):
        if behind is not None:
            read.append(behind[0])
        return stock(self, embeds, positions, behind)

    monkeypatch.setattr(Layers, "read", noted)
    stream.feed(pictures(10 * model.family.frames_per_step(model.backbone.config)))
    groups = stream._memory.groups.items
    for number, states in enumerate(read):
        expected = stream._memory._states(groups[max(0, number - 3) : number], None)
        assert torch.equal(states, expected)
