"""One line that vLLM's runner for CPUs lacks: without it no model may correct positions there, and vLLM's own EVS fails too."""

import functools
from typing import Any

from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.platforms import current_platform


def notice_pruning_on_cpus() -> None:
    """Have `CPUModelRunner.load_model` (vLLM 0.32 and 0.33, V1) look whether the model prunes, as the method of the GPU's runner does that it replaces."""
    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    stock = CPUModelRunner.load_model
    if stock.__module__ == __name__:
        return

    @functools.wraps(stock, assigned=("__doc__", "__name__"))
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        media = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = bool(
            media is not None
            and media.is_multimodal_pruning_enabled()
            and supports_multimodal_pruning(self.get_model())
        )

    CPUModelRunner.load_model = load_model
