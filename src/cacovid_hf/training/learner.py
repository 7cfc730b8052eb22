"""What a policy learns from: the interface of imitation, of rollouts and of contributions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..policies.base import PolicyOutput
from .arguments import ContributionTrainingArguments
from .batches import BatchHeader
from .replay import BatchMemory


class Learner:
    """Turns what a policy says of a batch of samples into losses, iteration by iteration.

    Args:
        model: the wrapped model.
        args: the settings.
        note: takes figures of a sample for the log, by name.
        examiner: a `judge.Examiner`, which has subsets of a video answered and judges the answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: ContributionTrainingArguments,
        note: Callable[..., None],
        examiner: Any,
    ):
        self.model: Any = model
        self.args, self.note, self.examiner = args, note, examiner

    def begin(self, checkpoint: str | None) -> None:
        """Start a run with nothing of another one, or go on with what a checkpoint's folder remembers."""

    def share(self) -> None:
        """Tell the other processes what was found out. All call it behind the first iteration on a step's last batch, also on an empty one."""

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint's folder what a resumed run needs. The first process alone calls it."""

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return the losses of one iteration, one per video, each 0-dimensional with a graph to the policy.

        Args:
            memory: of the batch. What later iterations need is written into it.
            header: says which iteration it is.
            outputs: of the policy in training, one per video.
        """
        raise NotImplementedError
