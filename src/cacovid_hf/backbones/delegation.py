"""What a model that holds a backbone answers as the backbone does: devices, embeddings, attention kernels, checkpointing."""

from typing import Any

import torch
from torch import nn

from .loaded import embedding_device


class DelegatesToBackbone(nn.Module):
    """Base of a model class, before `PreTrainedModel`, whose `backbone` answers for it.

    Attributes:
        backbone: a stock model.
    """

    backbone: Any

    @property
    def generation_config(self):
        """The backbone's."""
        return self.backbone.generation_config

    @generation_config.setter
    def generation_config(self, value) -> None:
        # The base class sets a default before there is a backbone, whose own must not be lost.
        if "backbone" in self._modules:
            self.backbone.generation_config = value

    @property
    def device(self) -> torch.device:
        """Of the backbone's input embeddings: where the inputs belong."""
        return embedding_device(self.backbone)

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's."""
        return self.backbone.dtype

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """The backbone's; missing, as on any model, if it was loaded without one."""
        return self.backbone.hf_device_map  # type: ignore[return-value]

    @hf_device_map.setter
    def hf_device_map(self, value: dict[str, Any]) -> None:
        # accelerate.dispatch_model notes here what it did, by names that begin at the wrapper.
        self.backbone.hf_device_map = {
            name.removeprefix("backbone").removeprefix("."): device
            for name, device in value.items()
            if not name.startswith("policy")
        }

    def can_generate(self) -> bool:  # type: ignore[override]
        """Whether the backbone can."""
        return "backbone" not in self._modules or self.backbone.can_generate()

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the backbone's."""
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's."""
        self.backbone.set_output_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Of the backbone; the policy knows no vocabulary."""
        return self.backbone.resize_token_embeddings(*args, **kwargs)

    def get_decoder(self) -> nn.Module:
        """Return the backbone's language model."""
        return self.backbone.get_decoder()

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Of the backbone; the policy's attention is always sdpa."""
        self.backbone.set_attn_implementation(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Of the backbone; the policy is one layer."""
        self.backbone.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Of the backbone."""
        self.backbone.gradient_checkpointing_disable()
