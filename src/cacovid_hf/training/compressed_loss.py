"""The loss of compressed prompts for trainers that take the labels away from the model: transformers' `compute_loss_func`, TRL."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..generation.call import kept_labels


@dataclass(frozen=True)
class CompressedLoss:
    """Cross entropy of the next tokens of a compressed prompt, for `Trainer(..., compute_loss_func=CompressedLoss(label_smoothing=0.1))`.

    The logits of a compressed prompt are shorter than its labels. Here the labels of dropped tokens are dropped too, and position `i` is held to the
    label of the position after it, as the models' own losses do. `Trainer`'s own `label_smoothing_factor` does neither.

    Attributes:
        label_smoothing: in [0, 1); this part of each target is spread evenly over the vocabulary (as torch's `cross_entropy`).
        ignore_index: label without a loss.
    """

    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} is outside [0, 1): give the part of a target that is spread."
            )

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: "Tensor | int | None" = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: of the model's forward: `logits` `(B, K, vocabulary)` and `kept_indices` `(B, K)`.
            labels: `(B, L)` of the prompt before compression, or `(B, K)` as `outputs.labels` gives them.
            num_items_in_batch: what the sum of the losses is divided by; None is the number of labels that count.

        Raises:
            ValueError: no labels, or those of another prompt.
        """
        logits, places = outputs["logits"], outputs["kept_indices"]
        if labels is None:
            raise ValueError("The batch has no labels: give them in the collator, -100 where no loss is taken.")
        if labels.shape[1] != logits.shape[1]:
            if int(places.max()) >= labels.shape[1]:
                raise ValueError(
                    f"The labels have {labels.shape[1]} places, fewer than the prompt: give one for each of its tokens."
                )
            kept = kept_labels(labels, places)
            labels = labels if kept is None else kept
        targets = labels[:, 1:].to(logits.device).flatten()
        total = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            targets,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        if num_items_in_batch is None:
            num_items_in_batch = (targets != self.ignore_index).sum().clamp(min=1)
        return total / torch.as_tensor(num_items_in_batch, device=total.device)
