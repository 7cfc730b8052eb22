"""How far from the limit a stage is: its floating-point operations and bytes by formula, against a device's measured peaks.

What is counted: `cacovid_hf.utils.operations`.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from cacovid_hf.utils.operations import Work


@dataclass(frozen=True)
class Peaks:
    """What a device can do: operations and bytes a second."""

    flops: float
    bytes: float

    def milliseconds(self, work: Work) -> float:
        """The least time that a stage can take."""
        return 1000 * max(work.flops / self.flops, work.bytes / self.bytes)


def vision(config: Any, frames: int, side: int, element_bytes: int) -> Work:
    """The tower and the projector over `frames` frames of `side` pixels."""
    tower, hidden = config.vision_config, config.get_text_config().hidden_size
    if config.model_type == "llava_onevision":
        patches, size, inner = (side // tower.patch_size) ** 2, tower.hidden_size, tower.intermediate_size
        layer = 4 * size**2 + 2 * size * inner
        attention = 4 * patches**2 * size
        per_frame = tower.num_hidden_layers * (2 * patches * layer + attention)
        projector = size * hidden + hidden**2
        flops = frames * (per_frame + 2 * patches * projector)
        weights = tower.num_hidden_layers * layer + projector
        pixels = frames * 3 * side**2
    else:
        patches, size, inner = (side // tower.patch_size) ** 2, tower.hidden_size, tower.intermediate_size
        steps = frames // tower.temporal_patch_size
        layer = 4 * size**2 + 3 * size * inner
        window = (tower.window_size // tower.patch_size) ** 2
        full = len(tower.fullatt_block_indexes)
        attention = 4 * patches * size * (full * patches + (tower.depth - full) * min(window, patches))
        merged = size * tower.spatial_merge_size**2
        projector = merged**2 + merged * tower.out_hidden_size
        per_step = 2 * patches * tower.depth * layer + attention
        flops = steps * (per_step + 2 * patches // tower.spatial_merge_size**2 * projector)
        weights = tower.depth * layer + projector
        pixels = steps * 3 * tower.temporal_patch_size * side**2
    return Work(flops, (weights + pixels) * element_bytes)


def measured_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best of a few matrix products and of a few copies, on the threads that are set."""
    on_gpu = device.type == "cuda"
    size, numbers = (8192, 1 << 28) if on_gpu else (1024, 1 << 24)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(numbers, device=device, dtype=torch.float32)
    target = torch.empty_like(source)

    def best(work: Any, repeats: int = 8) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times[2:])

    return Peaks(2 * size**3 / best(lambda: left @ right), 2 * 4 * numbers / best(lambda: target.copy_(source)))
