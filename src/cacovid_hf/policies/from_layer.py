"""Read weights off a decoder layer of any kind: quantised, sharded, offloaded or with adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, each part's own mode restored afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def norm_weight(norm: Any) -> Tensor:
    """Weight of an RMS norm, also where the parameter itself is offloaded: the norm of (1, ..., 1) times the weight is the weight."""
    if not norm.weight.is_meta:
        return norm.weight
    ones = torch.ones(1, norm.weight.numel(), dtype=norm.weight.dtype)
    return norm(ones)[0]


def copy_linear(target: Any, source: Any) -> None:
    """Copy weight and bias of `source`, a linear layer of any kind (quantised, offloaded, with an adapter).

    Plain layers are copied; of any other, the columns are read off its output for unit vectors, in chunks.
    """
    weight = source.weight
    plain = (
        type(source) is nn.Linear and type(weight.data) is Tensor and weight.is_floating_point() and not weight.is_meta
    )
    if plain:
        target.weight.copy_(source.weight)
        bias = source.bias
    else:
        dtype = source.weight.dtype if source.weight.is_floating_point() else target.weight.dtype
        device = source.weight.device if not source.weight.is_meta else target.weight.device
        bias = source(torch.zeros(1, target.in_features, dtype=dtype, device=device))[0]
        for start in range(0, target.in_features, 1024):
            stop = min(start + 1024, target.in_features)
            units = torch.zeros(stop - start, target.in_features, dtype=dtype, device=device)
            units[:, start:stop].fill_diagonal_(1)
            target.weight[:, start:stop] = (source(units) - bias).T
    if target.bias is not None:
        target.bias.copy_(bias if bias is not None else torch.zeros_like(target.bias))
