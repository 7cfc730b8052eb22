"""Numbers in few bits: rows between their smallest and largest value, in equal steps (asymmetric min-max)."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

BITS = (2, 4, 8, 16, 32)
# Float16 ends at 65504, and where a row begins is rounded away from its numbers.
LARGEST = 65_000


@dataclass(frozen=True)
class Packed:
    """Rows of numbers, each with its own steps; what a memory holds in place of a tensor.

    Attributes:
        codes: uint8 `(..., ceil(m * bits / 8))`; with 16 or 32 bits the numbers themselves, `(..., m)`.
        low: float16 `(...)`, where the steps of a row begin; None with 16 or 32 bits.
        step: float16 `(...)`, likewise.
        size: `m`, the numbers in a row.
        bits: of a number.
    """

    codes: Tensor
    low: Tensor | None
    step: Tensor | None
    size: int
    bits: int

    @property
    def num_bytes(self) -> int:
        """Of the codes, and of where the steps begin and how wide they are."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        named = {"codes": self.codes, "low": self.low, "step": self.step}
        return {name: part for name, part in named.items() if part is not None}

    @classmethod
    def of(cls, parts: dict[str, Tensor], size: int, bits: int) -> "Packed":
        """Of `parts`."""
        return cls(parts["codes"], parts.get("low"), parts.get("step"), size, bits)

    def to(self, device: torch.device | str) -> "Packed":
        """Return the same on a device."""
        return Packed.of({name: part.to(device) for name, part in self.parts.items()}, self.size, self.bits)

    def __getitem__(self, rows: Tensor) -> "Packed":
        """Rows by number along the first dimension, int64; their codes stay as they are."""
        return Packed.of({name: part[rows] for name, part in self.parts.items()}, self.size, self.bits)


def in_half(bits: int, dtype: torch.dtype) -> bool:
    """Whether float16 keeps numbers of a dtype in so many bits, so that they may not be over `LARGEST`."""
    return bits < 16 or (bits == 16 and dtype == torch.float32)


@torch.no_grad()
def pack(numbers: Tensor, bits: int) -> Packed:
    """Store numbers in `bits` bits, in steps of the row that is the last dimension.

    An error is at most half a step. Published (StreamingTOM, arXiv 2510.18269): `step = max((max - min) / 15, 1e-8)`. Ours: any of 2, 4 and 8 bits, rows
    of any length, and steps that are rounded so that the row lies between its first and last step in 16 bits too.

    Args:
        numbers: `(..., m)`.
        bits: 2, 4 or 8; 16: as 16-bit floats (float32 becomes float16); 32: as they are.

    Raises:
        ValueError: NaN or infinite numbers, or ones over `LARGEST` where they are kept by float16.
    """
    size = numbers.shape[-1]
    most = numbers.abs().amax()
    if not bool(most.isfinite()):
        raise ValueError(
            "A stream cannot store NaN or infinite numbers: load the model in bfloat16 or float32, or check its weights."
        )
    if in_half(bits, numbers.dtype) and bool(most > LARGEST):
        raise ValueError(f"A stream cannot store numbers over {LARGEST} in {bits} bits: use bits=32.")
    if bits >= 16:
        is_wide = bits == 16 and numbers.dtype == torch.float32
        return Packed(numbers.half() if is_wide else numbers.clone(), None, None, size, bits)
    levels = 2**bits - 1
    wide = numbers.float()
    smallest, largest = wide.amin(-1), wide.amax(-1)
    # Rounded downwards and upwards: half a unit in the last place of float16 is 2^-11 of the value.
    low = (smallest - smallest.abs() * 2.0**-10).half()
    step = (((largest - low.float()) / levels) * (1 + 2.0**-10)).clamp(min=2.0**-24).half()
    # A value so small that float16 loses its last places is raised by one of its smallest numbers.
    step = torch.where(low.float() + step.float() * levels < largest, step + 2.0**-24, step)
    codes = ((wide - low.float()[..., None]) / step.float()[..., None]).round().clamp(0, levels).to(torch.uint8)
    return Packed(_joined(codes, bits), low, step, size, bits)


@torch.no_grad()
def unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    """Return the numbers `(..., m)` again, each at its step."""
    if packed.low is None or packed.step is None:
        return packed.codes.to(dtype)
    codes = _split(packed.codes, packed.bits, packed.size).float()
    return (codes * packed.step.float()[..., None] + packed.low.float()[..., None]).to(dtype)


def packed_bytes(rows: int, size: int, bits: int, float_bytes: int) -> int:
    """`num_bytes` of so many rows of `size` numbers.

    Args:
        rows: how many.
        size: numbers in a row.
        bits: of a number.
        float_bytes: of a number as it comes, for 32 bits.
    """
    if bits >= 16:
        return rows * size * (min(2, float_bytes) if bits == 16 else float_bytes)
    return rows * (-(-size * bits // 8) + 4)


def _joined(codes: Tensor, bits: int) -> Tensor:
    """Codes `(..., m)` side by side in bytes, the last one filled with zeros."""
    in_byte = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % in_byte)).unflatten(-1, (-1, in_byte))
    return reduce(torch.bitwise_or, (codes[..., place] << (bits * place) for place in range(in_byte)))


def _split(joined: Tensor, bits: int, size: int) -> Tensor:
    """Return the first `size` codes of every row again."""
    parts = [(joined >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(parts, dim=-1).flatten(-2)[..., :size]
