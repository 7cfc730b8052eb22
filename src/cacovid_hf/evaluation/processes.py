"""How many processes share a run, and which of them this is."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from ..utils.extras import pip_install


@dataclass(frozen=True)
class Processes:
    """This process among those that `accelerate launch` or `torchrun` started, or alone.

    Attributes:
        rank: 0 to `world - 1`; 0 writes results.
        world: how many there are.
        device: this process's own, if there are several.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    state: Any = None

    @classmethod
    def join(cls) -> "Processes":
        """Meet the others.

        Raises:
            ImportError: there are several, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError:
            raise ImportError(f"Several processes need accelerate: {pip_install('eval')}") from None
        # Shares of a long benchmark may end hours apart.
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes, state.device, state)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()
