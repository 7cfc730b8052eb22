"""Which samples each process trains on, in which order and how often: the same for one seed, wherever and whenever it runs.

The order is a function of the seed and the pass, so that a number of steps is a position in the data, and skipping to it reads nothing but
the names of samples. A sample keeps its number in the pass whichever process gets it: rollouts are drawn by that number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler


@dataclass(frozen=True)
class BatchHeader:
    """Heads a batch: what is to be done with its samples.

    Attributes:
        iteration: on these samples, from 0.
        slot: which of the batches of one optimiser step in this process.
        epoch: pass over the data.
        numbers: of the samples, their places in the pass; empty where there are none left for this process.
        indices: of the samples in the dataset, the same in every pass; empty for a stream.
    """

    iteration: int
    slot: int
    epoch: int
    numbers: tuple[int, ...]
    indices: tuple[int, ...] = ()


def is_stream(dataset: Any) -> bool:
    """Whether a dataset can only be read from its beginning."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


class SampleBatches(Sampler):
    """Batch sampler: the samples of one optimiser step after those of another, each step's `repeats` times.

    A batch is a list. Its `BatchHeader` stands first. In the first iteration the samples follow: indices of a map-style dataset, or the samples
    of a stream. Later iterations have none, because the trainer remembers them. Every process gets the same number of batches,
    `batches_per_step` per step; at the end of a pass some are empty.

    Example: 5 samples, `batch_size=1`, `batches_per_step=2` (gradient accumulation), `repeats=2`, one process, not shuffled.

    ```
                      slot 0        slot 1
    step 0  iter. 0   [header, 0]   [header, 1]   read, embedded, trained on
    step 1  iter. 1   [header]      [header]      trained on again, from memory
    step 2  iter. 0   [header, 2]   [header, 3]
    step 3  iter. 1   [header]      [header]
    step 4  iter. 0   [header, 4]   [header]      the last group has one sample
    step 5  iter. 1   [header]      [header]
    ```

    Two processes with `batches_per_step=1` get one column each.

    Args:
        dataset: map-style, or a stream (`is_stream`), which is read again and again if `shuffle_seed` is given.
        batch_size: samples in a batch.
        batches_per_step: batches of one step in each process.
        repeats: steps on the same samples.
        num_processes: that share each step's samples.
        process_index: which of them this is.
        shuffle_seed: of the order, another one in each pass; None: the dataset's own order. A stream keeps its own order, and is
            told the pass if it has a `set_epoch`.
        early: which samples of a map-style dataset come first in every pass, a bool each; None: none does.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        batches_per_step: int = 1,
        repeats: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        shuffle_seed: int | None = None,
        early: Sequence[bool] | None = None,
    ):
        self.dataset, self.batch_size, self.batches_per_step, self.repeats = (
            dataset,
            batch_size,
            batches_per_step,
            repeats,
        )
        self.num_processes, self.process_index, self.shuffle_seed = num_processes, process_index, shuffle_seed
        self.early = early
        self.epoch = 0

    @property
    def samples_per_step(self) -> int:
        """Of all processes together."""
        return self.batch_size * self.batches_per_step * self.num_processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        if is_stream(self.dataset):
            raise TypeError("a stream has no length")
        steps = -(-len(self.dataset) // self.samples_per_step)
        return steps * self.repeats * self.batches_per_step

    def __iter__(self) -> Iterator[list[Any]]:
        if not is_stream(self.dataset):
            yield from self._one_pass(self.epoch, iter(self._order()))
            return
        for epoch in count():
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            number = -1
            for number, batch in enumerate(self._one_pass(epoch, iter(self.dataset))):  # noqa: B007
                yield batch
            if number < 0:
                raise ValueError("The stream of samples is empty: give at least one.")
            if self.shuffle_seed is None:
                return

    def _order(self) -> list[int]:
        order = self._shuffled()
        return order if self.early is None else sorted(order, key=lambda index: not self.early[index])  # type: ignore[index]

    def _shuffled(self) -> list[int]:
        size = len(self.dataset)
        if self.shuffle_seed is None:
            return list(range(size))
        # torch's seeds are whole numbers: the pass is mixed in by a generator of its own.
        seed = int(torch.randint(2**62, (self.epoch + 1,), generator=_generator(self.shuffle_seed))[-1])
        return torch.randperm(size, generator=_generator(seed)).tolist()

    def _one_pass(self, epoch: int, samples: Iterator[Any]) -> Iterator[list[Any]]:
        first, is_known = 0, not is_stream(self.dataset)
        while group := list(islice(samples, self.samples_per_step)):
            for iteration in range(self.repeats):
                for slot in range(self.batches_per_step):
                    start = (slot * self.num_processes + self.process_index) * self.batch_size
                    part = group[start : start + self.batch_size]
                    numbers = tuple(range(first + start, first + start + len(part)))
                    header = BatchHeader(iteration, slot, epoch, numbers, tuple(part) if is_known else ())
                    yield [header, *(part if iteration == 0 else ())]
            first += len(group)


class SampleReader(Dataset):
    """Map from what `SampleBatches` yields to samples; headers, and the samples of streams, are their own."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Any:
        return item if isinstance(item, BatchHeader) or is_stream(self.dataset) else self.dataset[item]


class SampleLoader(DataLoader):
    """A loader that passes the number of the pass on to its `SampleBatches`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class HeaderCollator:
    """Collates the samples behind a `BatchHeader` by another collator, and puts the header beside the result."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, batch: Sequence[Any]) -> dict[str, Any]:
        """Return the collator's batch, or none of it where there are no samples, and `header`."""
        header, *samples = batch
        return {**(self.collate(samples) if samples else {}), "header": header}


def sample_generator(seed: int, header: BatchHeader, number: int, purpose: str) -> torch.Generator:
    """Return the chance of one sample and iteration: the same whichever process draws, and whatever was drawn before.

    Args:
        seed: of the run.
        header: of the sample's batch.
        number: the sample's place in the pass.
        purpose: `"rollouts"`, `"ratio"` or `"ranking"`, which have chances of their own.
    """
    entropy = (seed, header.epoch, number, header.iteration, ("rollouts", "ratio", "ranking").index(purpose))
    drawn = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return _generator(int(drawn >> np.uint64(1)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
