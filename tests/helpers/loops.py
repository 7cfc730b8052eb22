"""Rules of methods as plain loops over single tokens, and videos to try them on."""

import math

import torch


def features_like_a_video(frames=9, size=12, width=16, seed=0):
    """Slowly changing tokens with two cuts, float64 noise far above rounding."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(3, size, width, generator=generator)
    scene = torch.arange(frames) * 3 // frames
    return scenes[scene] + 0.25 * torch.randn(frames, size, width, generator=generator)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def peaks(points, count, neighbours):
    """Density peaks of `(M, D)` by loops: centres in the order of their scores, and every point's nearest centre."""
    distance = [[float((a - b).norm()) / points.shape[1] ** 0.5 for b in points] for a in points]
    neighbours = min(neighbours, len(points))
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / neighbours) for row in distance]
    largest = max(max(row) for row in distance)
    score = []
    for i, row in enumerate(distance):
        denser = [row[j] for j in range(len(points)) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * min(denser, default=largest))
    centres = sorted(range(len(points)), key=lambda i: (-score[i], i))[:count]
    nearest = [i if i in centres else min(sorted(centres), key=lambda c: row[c]) for i, row in enumerate(distance)]
    return centres, nearest
