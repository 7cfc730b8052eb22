"""What the calls on prompts ask of the model that is wrapped."""

from typing import Any, Protocol

from ..compressors.base import CompressibleModel


class WrappedModel(CompressibleModel, Protocol):
    """A backbone with a policy and settings."""


class AnsweringModel(WrappedModel, Protocol):
    """One that generates."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `CompressedGenerationMixin.generate`."""
        ...

    def stock_generate(self, **arguments: Any) -> Any:
        """The backbone's own `generate`."""
        ...
