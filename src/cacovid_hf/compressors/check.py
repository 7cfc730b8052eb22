"""Whether a method did what it must, asked without making the host wait."""

import torch
from torch import Tensor

from ..prompt import VideoSelection
from .tools.selection import NOT_FINITE, all_finite


class Check:
    """What must hold of a compression and only the device knows: exact counts, finite scores.

    A prompt cut by a count that is not its mask's would come out scrambled, without a sign of it. Asking at once would make the host wait for vision
    and policy, so it is asked in two steps: `launch` while the device is busy with the prefill, `settle` when it has been waited for anyway.

    Args:
        name: of the method.
        selections: of every video.
        budgets: how many tokens each should keep.

    Raises:
        ValueError: a mask of the wrong kind or shape, at once; by `settle`: of the wrong count, or from scores that are not finite.
    """

    def __init__(self, name: str, selections: tuple[VideoSelection, ...], budgets: list[int]):
        self.name, self.selections, self.budgets = name, selections, budgets
        self._facts: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._settled = False
        for selection, budget in zip(selections, budgets, strict=True):
            shape = (selection.span.num_frames, selection.span.tokens_per_frame)
            if selection.keep.shape != shape or selection.keep.dtype != torch.bool:
                raise self._wrong(f"a {selection.keep.dtype} of {tuple(selection.keep.shape)}", selection, budget)

    @property
    def waits(self) -> bool:
        """Whether asking makes the host wait for a device."""
        return any(selection.keep.device.type != "cpu" for selection in self.selections)

    def launch(self) -> None:
        """Have the device work it out and send it, in its own time."""
        if self._facts is not None or not self.selections:
            return
        facts = []
        for selection in self.selections:
            scores = [s for s in (selection.token_scores, selection.frame_scores) if s is not None]
            finite = all_finite(*scores) if scores else torch.ones((), device=selection.keep.device)
            facts.append(torch.stack([selection.keep.sum(), finite.long()]))
        self._facts = torch.stack(facts)  # (videos, 2)
        if self._facts.device.type == "cuda":
            self._copied = torch.cuda.Event()
            stream = torch.cuda.current_stream(self._facts.device)
            self._facts = self._facts.to("cpu", non_blocking=True)  # into pinned memory
            self._copied.record(stream)

    def settle(self) -> None:
        """Raise if something is wrong; the second time there is nothing left to do."""
        if self._settled:
            return
        self._settled = True
        self.launch()
        if self._copied is not None:
            self._copied.synchronize()
        facts = [] if self._facts is None else self._facts.tolist()
        for selection, budget, (count, finite) in zip(self.selections, self.budgets, facts, strict=True):
            if not finite:
                raise ValueError(NOT_FINITE)
            if count != budget or count < 1:
                raise self._wrong(f"{count} tokens", selection, budget)

    def _wrong(self, kept: str, selection: VideoSelection, budget: int) -> ValueError:
        return ValueError(
            f"compressor {self.name!r} kept {kept} of a video, the budget is {budget} of "
            f"{(selection.span.num_frames, selection.span.tokens_per_frame)}: `select` must return a bool mask with exactly "
            "`token_budget(T * P, retention_ratio)` true."
        )
