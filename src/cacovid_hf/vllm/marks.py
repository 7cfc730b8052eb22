"""Where a kept token goes and which position it has, written beside its embedding.

vLLM hands a model nothing but embeddings when it may correct positions. A video's selection depends on its whole prompt, and so does the hash that
its encoder output is cached under. So place and position may be part of that output. They are digits to the base 256, which bfloat16 holds exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DIGITS = 3
COLUMNS = 4 * DIGITS


def marked(embeds: Tensor, places: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
    """Write marks behind the columns of embeddings.

    Args:
        embeds: `(k, D)`.
        places: int64 `(k,)`, indices in the prompt, below `256**3 - 1`; None: the positions are right as they are.
        positions: int64 `(3, k)`, below `256**3`.

    Returns:
        `(k, D + COLUMNS)`.
    """
    if places is None or positions is None:
        return torch.cat([embeds, embeds.new_zeros(len(embeds), COLUMNS)], dim=1)
    numbers = torch.cat([places[None] + 1, positions]).T  # (k, 4); 0 means no mark
    digits = torch.stack([(numbers >> (8 * digit)) & 255 for digit in range(DIGITS)], dim=-1)
    return torch.cat([embeds, digits.flatten(1).to(embeds)], dim=1)


def write_positions(positions: Tensor, embeds: Sequence[Tensor]) -> list[Tensor]:
    """Write what the marks say into `positions` `(3, L)`, in place.

    Returns:
        The embeddings `(k, D)` without their marks.
    """
    for part in embeds:
        digits = part[:, -COLUMNS:].to(torch.int64).unflatten(1, (4, DIGITS))
        numbers = (digits << (8 * torch.arange(DIGITS, device=digits.device))).sum(-1).to(positions.device)
        known = numbers[numbers[:, 0] > 0]
        positions[:, known[:, 0] - 1] = known[:, 1:].T.to(positions.dtype)
    return [part[:, :-COLUMNS] for part in embeds]
