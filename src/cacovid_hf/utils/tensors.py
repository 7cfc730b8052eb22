"""Small operations on tensors that several rooms share."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def rotate(states: Tensor, cos: Tensor, sin: Tensor, pairs: bool = False) -> Tensor:
    """Rotary embedding of `(H, n, head_dim)` by `(n, E)`, the last `head_dim - E` channels left as they are.

    Args:
        states: of the heads.
        cos: of the angles.
        sin: likewise.
        pairs: turn neighbouring channels against each other, as GLM does; if not, the two halves.
    """
    if cos.shape[-1] < states.shape[-1]:
        turned, rest = states.split((cos.shape[-1], states.shape[-1] - cos.shape[-1]), dim=-1)
        return torch.cat((rotate(turned, cos, sin, pairs), rest), dim=-1)
    if pairs:
        first, second = states[..., 0::2], states[..., 1::2]
        return states * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off on a device, so that matrix products of float32 are float32."""
    if torch.compiler.is_compiling():  # torch 2.11 cannot trace the questions below
        return torch.autocast(device.type, enabled=False)
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device without waiting for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity; None if there is none. One answer is read from each device.

    Tensors without data and those of fewer than 16 bits are not looked at.
    """
    names: dict[torch.device, list[str]] = {}
    finite: dict[torch.device, list[Tensor]] = {}
    for name, tensor in tensors:
        if tensor.numel() and tensor.device.type != "meta" and tensor.dtype in _WITH_INFINITY:
            names.setdefault(tensor.device, []).append(name)
            # No mask as large as the tensor.
            finite.setdefault(tensor.device, []).append(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
    for device, found in finite.items():
        good = torch.stack(found).tolist()
        if not all(good):
            return names[device][good.index(False)]
    return None


_WITH_INFINITY = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
