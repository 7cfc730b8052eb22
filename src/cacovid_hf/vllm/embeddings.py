"""Videos of Qwen2.5-VL that come as what a vision tower made of them (`--enable-mm-embeds`)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

VALUES, GRIDS, SECONDS = "video_embeds", "video_grid_thw", "second_per_grid_ts"


def checked_embeddings(given: Mapping[str, Any], merged: int, width: int | None) -> dict[str, Tensor]:
    """Return what a request gives of its videos, refusing what does not fit together and would end the engine.

    Args:
        given: `video_embeds` `(k, D)`, the tokens of all videos; `video_grid_thw` int64 `(n, 3)`, in patches; and, if positions in time are to be
            those of the file, `second_per_grid_ts` `(n,)`, the seconds of a temporal step. Without them a step takes one second.
        merged: patches of a token.
        width: `D`; None: any.

    Raises:
        ValueError: a field is missing or unknown, shapes do not match, or seconds are negative or not finite.
    """
    if not {VALUES, GRIDS} <= given.keys() <= {VALUES, GRIDS, SECONDS}:
        raise ValueError(
            f"A video of embeddings has {', '.join(sorted(given))}: give {VALUES}, {GRIDS} and perhaps {SECONDS}."
        )
    try:
        values, grids = torch.as_tensor(given[VALUES]), torch.as_tensor(given[GRIDS])
        seconds = torch.as_tensor(given[SECONDS], dtype=torch.float32) if SECONDS in given else None
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{VALUES}, {GRIDS} or {SECONDS} holds no numbers: give tensors.") from None
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.is_floating_point() or bool((grids < 1).any()):
        raise ValueError(f"{GRIDS} has shape {tuple(grids.shape)} or numbers below 1: give (videos, 3), in patches.")
    cells = grids.prod(-1)
    tokens = int(cells.sum()) // merged
    if bool((cells % merged).any()) or values.ndim != 2 or values.shape != (tokens, width or values.shape[-1]):
        raise ValueError(f"{VALUES} has shape {tuple(values.shape)}: by its grids it is {(tokens, width or 'D')}.")
    if not values.is_floating_point():
        raise ValueError(f"{VALUES} is of {values.dtype}: give floating-point numbers.")
    found = {VALUES: values, GRIDS: grids}
    if seconds is None:
        return found
    if seconds.shape != grids.shape[:1] or not bool((seconds.isfinite() & (seconds >= 0)).all()):
        raise ValueError(f"{SECONDS}={seconds.tolist()}: give one number per video, not negative.")
    return {**found, SECONDS: seconds}
