"""GleanVID: more tokens for frames with news, and in a frame tokens that stand out and are not yet spanned (Beihang, 2026)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad, softplus, unfold

from ..prompt import Prompt, VideoSpan
from .base import Compressor, Scores
from .tools.counts import apportion
from .tools.tokens import top_tokens

# Tokens of a cell along each side, and cells around a cell that its novelty is measured against.
CELL, AROUND = 2, 3
RIDGE = 1e-4
# Directions below this part of the largest are dependent, and what is left of a token below this part of its energy is rounding.
_DEPENDENT, _NOTHING = 1e-4, 1e-5
# Directions and rounds of the power iteration for the first one.
_BLOCK, _ROUNDS = 8, 20
# Frames whose cells are compared at once.
_FRAMES = 16


@dataclass(frozen=True)
class GleanVid(Compressor):
    """Keep tokens that stand out of their frame and that those kept so far do not span; blind to the question, reads no attention, merges nothing.

    Published: the first common direction is taken out of all tokens. Frames share the budget by how little the cells of the frame before explain theirs, the
    more so the more uneven that is. Frame by frame the tokens stay with the largest sum of salience and of what the kept ones leave of them.
    Derived by us: a cell is 2 x 2 tokens, smaller at the edges, and is compared with the 3 x 3 cells around its place. Cells are made of the tokens without
    the common direction, which comes from 20 rounds of a block power iteration.
    Departures: a token is dependent by comparison with the largest direction of the whole video so far instead of its frame's, and is taken out before
    directions are made. So a frame without news adds none. What is left of a token by rounding alone counts as nothing.

    Args:
        even_share: part of the budget shared evenly over frames where all have as much news.
        least_even_share: the same where one frame has all of it.
        sharpness: of the softplus that salience passes through; larger = more like a ramp.
    """

    even_share: float = 0.6
    least_even_share: float = 0.2
    sharpness: float = 4.0

    name = "gleanvid"

    def __post_init__(self):
        if not 0 <= self.least_even_share <= self.even_share <= 1:
            raise ValueError(
                f"least_even_share={self.least_even_share!r} and even_share={self.even_share!r}: give 0 <= least_even_share <= even_share <= 1."
            )
        if not self.sharpness > 0:
            raise ValueError(f"sharpness={self.sharpness!r} must be above 0.")

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """Frame by frame; the frames' counts are read back from the device once."""
        features = prompt.video_features(span).float()
        grid = span.grid[1:]
        debiased = without_first_direction(features)
        news = novelty(debiased, grid)
        counts = apportion(
            frame_shares(news, self.even_share, self.least_even_share), budget, span.tokens_per_frame
        ).tolist()
        return glean(debiased, salience(features, grid, self.sharpness), counts)


@torch.no_grad()
def without_first_direction(features: Tensor) -> Tensor:
    """Features `(T, P, D)` less their part along the first right singular direction of the centred tokens, the mean kept."""
    tokens = features.flatten(0, 1)
    centred = tokens - tokens.mean(0)
    width = min(_BLOCK, *centred.shape)
    block = centred[torch.arange(width, device=tokens.device) * len(tokens) // width].T  # (D, width)
    for _ in range(_ROUNDS):
        block = torch.linalg.qr(centred.T @ (centred @ block)).Q
    image = centred @ block
    first = block @ torch.linalg.eigh(image.T @ image).eigenvectors[:, -1]
    return features - ((centred @ first)[:, None] * first).view_as(features)


def cell_means(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means of the 2 x 2 cells of every frame, cells at the edges smaller: `(T, h * w, D)` to `(T, ceil(h / 2), ceil(w / 2), D)`."""
    frames = features.unflatten(1, grid)
    sides = [side % CELL for side in grid]
    padded = pad(frames, (0, 0, 0, sides[1], 0, sides[0]))
    there = pad(frames.new_ones(grid), (0, sides[1], 0, sides[0]))
    tiles = (padded.shape[1] // CELL, CELL, padded.shape[2] // CELL, CELL)
    sums = padded.view(len(features), *tiles, -1).sum((2, 4))
    return sums / there.view(tiles).sum((1, 3))[..., None]


@torch.no_grad()
def novelty(debiased: Tensor, grid: tuple[int, int]) -> Tensor:
    """Of every frame the sum over its cells of the length that the cells around their place in the frame before leave unexplained.

    The projection is by normal equations with a ridge of `1e-4 * trace / number of cells`. Of the first frame all is news.

    Args:
        debiased: `(T, P, D)`.
        grid: `(h, w)`.

    Returns:
        float32 `(T,)`, not negative.
    """
    cells = cell_means(debiased, grid)  # (T, H, W, D)
    news = [cells[:1].norm(dim=-1).sum((1, 2))]
    for start in range(0, len(cells) - 1, _FRAMES):
        before, now = cells[start : start + _FRAMES], cells[start + 1 : start + 1 + _FRAMES]
        news.append(_unexplained(before[: len(now)], now).sum(-1))
    return torch.cat(news)


def _unexplained(before: Tensor, now: Tensor) -> Tensor:
    """Length of every cell of `now` outside the span of the cells `before` around its place: twice `(T, H, W, D)` to `(T, H * W)`."""
    steps, height, width, size = now.shape
    side = AROUND // 2
    planes = before.permute(0, 3, 1, 2)
    around = unfold(planes, AROUND, padding=side).view(steps, size, AROUND**2, height * width).permute(0, 3, 2, 1)
    there = unfold(planes.new_ones(1, 1, height, width), AROUND, padding=side)[0].T > 0  # (H * W, 9)
    own = now.flatten(1, 2)[..., None]  # (T, H * W, D, 1)
    gram = around @ around.mT
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).sum(-1) / there.sum(-1)
    ridge = ridge.clamp(min=torch.finfo(gram.dtype).tiny)[..., None]
    # Cells beyond the edge are rows of zeros: a one on their diagonal leaves the others' solution as it is.
    diagonal = torch.where(there, ridge, 1.0)
    weights = torch.linalg.solve(gram + torch.diag_embed(diagonal), around @ own)
    return (own - around.mT @ weights)[..., 0].norm(dim=-1)


def frame_shares(news: Tensor, even_share: float = 0.6, least_even_share: float = 0.2) -> Tensor:
    """Return what part of the budget every frame gets: an even part, and a part in proportion to its news, which is larger the more uneven they are (Gini).

    Args:
        news: `(T,)`, not negative.
        even_share: the even part where news are even.
        least_even_share: the even part where one frame of many has all.

    Returns:
        float64 `(T,)`, summing to 1.
    """
    news = news.double()
    size = len(news)
    total = news.sum()
    shares = torch.where(total > 0, news / total.clamp(min=1e-300), 1 / size)
    gini = (shares[:, None] - shares).abs().sum() / (2 * size)
    even = even_share - (even_share - least_even_share) * gini
    return even / size + (1 - even) * shares


def salience(features: Tensor, grid: tuple[int, int], sharpness: float = 4.0) -> Tensor:
    """How much more a token is like its cell than like its frame, through a softplus: `(T, P, D)` to float32 `(T, P)`."""
    cells = cell_means(features, grid).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    own = cells[:, : grid[0], : grid[1]].flatten(1, 2)
    frame = features.mean(1, keepdim=True)
    more = cosine_similarity(features, own, dim=-1) - cosine_similarity(features, frame, dim=-1)
    return softplus(sharpness * more) / sharpness


@torch.no_grad()
def glean(debiased: Tensor, salience: Tensor, counts: list[int]) -> Tensor:
    """Choose every frame's tokens by salience plus the length that all tokens kept before leave unspanned, each scaled to [0, 1] in the frame.

    Args:
        debiased: `(T, P, D)`.
        salience: `(T, P)`.
        counts: how many a frame.

    Returns:
        bool `(T, P)`.
    """
    steps, _, width = debiased.shape
    energy = debiased.square().sum(-1)
    nothing = _NOTHING * energy
    basis = debiased.new_zeros(width, 0)
    largest = debiased.new_zeros(())
    keep = []
    for frame, count in enumerate(counts):
        left = torch.where(energy[frame] > nothing[frame], energy[frame], 0.0).sqrt()
        keep.append(top_tokens(_scaled(salience[frame]) + _scaled(left), count))
        if count == 0 or frame == steps - 1:
            continue
        places = (~keep[-1]).sort(stable=True).indices[:count]
        tokens = debiased[frame, places].T  # (D, count)
        more, largest = _directions(tokens - basis @ (basis.T @ tokens), largest)
        energy[frame + 1 :] -= (debiased[frame + 1 :] @ more).square().sum(-1)
        basis = torch.cat([basis, more], dim=1)
    return torch.stack(keep)


def _directions(vectors: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions `(D, C)` of vectors `(D, C)`, zero for dependent ones, and the largest length of any direction so far."""
    lengths = torch.linalg.qr(vectors, mode="r").R.diagonal().abs()
    lengths = pad(lengths, (0, vectors.shape[1] - len(lengths)))
    largest = largest.maximum(lengths.amax())
    dependent = lengths <= _DEPENDENT * largest
    # Dependent vectors last: their directions are arbitrary, and would take a part of those behind them.
    order = dependent.long().sort(stable=True).indices
    directions = torch.linalg.qr(vectors[:, order]).Q
    return directions * ~dependent[order][: directions.shape[1]], largest


def _scaled(values: Tensor) -> Tensor:
    """Values scaled to [0, 1]; all alike, they are 0."""
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low).clamp(min=1e-6)
