"""Peak memory of a stretch of work."""

import contextlib
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Of a CUDA device what tensors took at most; on a CPU the process's largest resident set (Linux), which holds the weights and whatever
    the allocator has not given back.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def reset(self) -> None:
        """Begin a stretch."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # resets the peak, touches no page

    def read(self) -> int | None:
        """Bytes at most since `reset`; None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            lines = _STATUS.read_text().splitlines()
        except OSError:
            return None
        peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
        return int(peak) * 1024 if peak and _CLEAR.exists() else None
