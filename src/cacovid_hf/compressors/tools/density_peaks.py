"""Clustering by density peaks (DPC-kNN) of many small sets at once, without randomness: shared by the methods that merge tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of one block of pairwise distances: 128 MiB of float32.
_BLOCK = 1 << 25


@torch.no_grad()
def density_peaks(
    features: Tensor, valid: Tensor, counts: Tensor | int, num_neighbours: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Choose centres in every set, dense and far from anything denser, and the centre nearest to every token.

    Distances are Euclidean over `sqrt(D)`; density is `exp(-mean d^2)` over the nearest tokens, itself among them; the score is density times the
    distance to the nearest denser token (the set's largest distance for the densest). Departures from the published code, which adds random
    jitter to the densities: of equal densities the lower index counts as denser, and scores are compared as logarithms, which do not underflow.

    Args:
        features: `(R, M, D)`, a set a row.
        valid: bool `(R, M)`, the tokens that are there.
        counts: number of centres, one for all or `(R,)`, at most as many as a set's tokens.
        num_neighbours: nearest tokens that the density is taken over, one for all or `(R,)`; at most a set's tokens are.

    Returns:
        Centres bool `(R, M)`, and int64 `(R, M)`, the place in its row of every token's nearest centre, a centre's its own; of tokens
        that are not there, or in a set without centres, nothing is said.
    """
    rows = len(valid)
    if rows == 0:
        return valid, valid.long()
    counts = torch.as_tensor(counts, device=features.device).expand(rows)
    found: list[tuple[Tensor, Tensor]] = []
    for block, squared, score in _scored_blocks(features, valid, num_neighbours):
        centres = best_of(score, counts[block], valid[block])
        nearest = squared.masked_fill(~centres[:, None, :], torch.inf).argmin(-1)
        places = torch.arange(valid.shape[1], device=nearest.device)
        found.append((centres, torch.where(centres, places, nearest)))
    return torch.cat([centres for centres, _ in found]), torch.cat([nearest for _, nearest in found])


@torch.no_grad()
def peak_scores(features: Tensor, valid: Tensor, num_neighbours: Tensor | int) -> Tensor:
    """Return the scores that `density_peaks` chooses its centres by: float32 `(R, M)`, larger = rather a centre, -inf of tokens that are not there.

    Args:
        features: `(R, M, D)`, a set a row.
        valid: bool `(R, M)`, the tokens that are there.
        num_neighbours: as of `density_peaks`.
    """
    scores = [score for _, _, score in _scored_blocks(features, valid, num_neighbours)]
    return torch.cat(scores) if scores else valid.float()


def best_of(score: Tensor, counts: Tensor, *classes: Tensor) -> Tensor:
    """Mark the `counts` `(R,)` best of every row of `score` `(R, M)`; at ties the lower index wins.

    A token within a class, bool `(R, M)`, comes before every token outside it, whatever their scores; the last class counts most.
    """
    # Sorted by classes too: equal tokens have score -inf as well as those that are not there.
    order = score.sort(dim=-1, descending=True, stable=True).indices
    for is_within in classes:
        order = order.gather(1, (~is_within).gather(1, order).sort(dim=-1, stable=True).indices)
    places = torch.arange(score.shape[1], device=order.device)
    rank = torch.empty_like(order).scatter_(1, order, places.expand_as(order))
    return rank < counts[:, None]


def _scored_blocks(
    features: Tensor, valid: Tensor, num_neighbours: Tensor | int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Return some rows at a time: which, their squared distances `(R, M, M)` over `D`, and their scores."""
    rows, size = valid.shape
    neighbours = torch.as_tensor(num_neighbours, device=features.device).expand(rows)
    most = min(num_neighbours, size) if isinstance(num_neighbours, int) else size
    block = max(1, _BLOCK // size**2)
    for start in range(0, rows, block):
        b = slice(start, start + block)
        yield b, *_scored(features[b], valid[b], neighbours[b], most)


def _scored(features: Tensor, valid: Tensor, neighbours: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Squared distances and scores of one block of rows; `most` bounds `neighbours`."""
    size, width = features.shape[-2:]
    pair = valid[:, :, None] & valid[:, None, :]
    squared = squared_distances(features) / width
    near = squared.masked_fill(~pair, torch.inf).topk(most, largest=False).values
    near_is_there = near.isfinite() & (torch.arange(most, device=near.device) < neighbours[:, None, None])
    mean = near.masked_fill(~near_is_there, 0).sum(-1) / near_is_there.sum(-1).clamp(min=1)  # minus the log density

    first = torch.ones(size, size, dtype=torch.bool, device=features.device).tril(-1)  # [i, j]: j before i
    denser = (mean[:, None, :] < mean[:, :, None]) | ((mean[:, None, :] == mean[:, :, None]) & first)
    largest = squared.masked_fill(~pair, 0).amax((1, 2))[:, None]
    to_denser = squared.masked_fill(~(denser & pair), torch.inf).amin(-1).minimum(largest)
    return squared, (0.5 * to_denser.log() - mean).masked_fill(~valid, -torch.inf)


def squared_distances(features: Tensor) -> Tensor:
    """Squared Euclidean distances `(R, M, M)` in float32 of tokens `(R, M, D)`; equal tokens are at distance 0."""
    # Centred, so that the products do not cancel; squared lengths off their diagonal for the same reason.
    centred = features.float() - features.float().mean(-2, keepdim=True)
    products = centred @ centred.mT
    lengths = products.diagonal(dim1=-2, dim2=-1)
    return (lengths[:, :, None] + lengths[:, None, :] - 2 * products).clamp(min=0)


def group_means(features: Tensor, group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean of the tokens of every group, summed in the tokens' order on any device.

    Args:
        features: `(M, D)`.
        group: int64 `(M,)`, in [0, num_groups); tokens of group `num_groups` are left out.

    Returns:
        float32 `(num_groups, D)`, zero for empty groups, and their sizes, int64 `(num_groups,)`.
    """
    order = group.argsort(stable=True)
    sizes = torch.zeros(num_groups + 1, dtype=torch.long, device=group.device)
    sizes.scatter_add_(0, group, torch.ones_like(group))
    sums = torch.segment_reduce(features.float()[order], "sum", lengths=sizes, unsafe=True)[:num_groups]
    return sums / sizes[:num_groups, None].clamp(min=1), sizes[:num_groups]
