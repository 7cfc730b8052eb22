"""What the calls on prompts ask of the model that is wrapped."""

from typing import Any, Protocol

from ..backbones.base import Backbone
from ..compressors.base import CompressibleModel


class WrappedModel(CompressibleModel, Protocol):
    """A backbone with a policy and settings."""

    @property
    def family(self) -> Backbone:
        """How prompts of the backbone are laid out, and how they are embedded."""
        ...


class AnsweringModel(WrappedModel, Protocol):
    """One that generates."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `CompressedGenerationMixin.generate`."""
        ...

    def stock_generate(self, **arguments: Any) -> Any:
        """Return the backbone's own `generate`."""
        ...
