"""Tell transformers' Auto classes of this package, without importing anything early.

`import cacovid_hf` must cost nothing, and the Auto modules and model code of transformers take seconds. So each registration waits for the
transformers module that it concerns: it runs at once if that module is there already, otherwise right after it is imported. Nothing of
transformers is replaced.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType


def _import(name: str) -> ModuleType:
    """Import one of our modules; `configuration` and `modeling` register in their last line, which of a half imported one is yet to come."""
    return importlib.import_module(f".{name}", __package__)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs a callback after each awaited module's own code has run."""

    def __init__(self, awaited: dict[str, Callable[[], None]]):
        self.awaited = awaited

    def find_spec(self, name, path, target=None):
        """Let the others find the module, and add the callback to its loader."""
        if name not in self.awaited:
            return None
        callback = self.awaited.pop(name)
        if not self.awaited:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_then_call(module) -> None:
            run(module)
            callback()

        spec.loader.exec_module = run_then_call  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register config, model and video processors now or as soon as their Auto classes are imported."""
    callbacks = {
        "transformers.models.auto.configuration_auto": lambda: _import("configuration"),
        # The model code of transformers takes seconds to import: where the Auto classes are there already, ours waits for it, or for the first config.
        "transformers.modeling_utils"
        if "transformers.models.auto.modeling_auto" in sys.modules
        else "transformers.models.auto.modeling_auto": lambda: _import("modeling"),
        "transformers.models.auto.video_processing_auto": lambda: _import("processing").register(),
    }
    waiting = {}
    for name, callback in callbacks.items():
        if name in sys.modules:
            callback()
        else:
            waiting[name] = callback
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))
