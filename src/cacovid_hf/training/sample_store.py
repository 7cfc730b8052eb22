"""What was found out about samples and is used again when they come back, in all processes and in checkpoints."""

from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..utils.files import replaced

Found = tuple[int, tuple[Tensor, ...]]  # tokens of the video, and the figures


class SampleStore:
    """Figures of samples, by their place in the dataset; nothing of samples of a stream, which have none.

    Args:
        file: what it is called in a checkpoint.
        names: of the figures. Those of one sample have the same length.
    """

    def __init__(self, file: str, *names: str):
        self.file, self.names = file, names
        self._known: dict[int, Found] = {}
        self._unshared: dict[int, Found] = {}  # of these, what other processes have not been told

    def __len__(self) -> int:
        return len(self._known)

    def get(self, index: int | None, size: int) -> tuple[Tensor, ...] | None:
        """Return the figures of a sample, on the CPU; None if there are none, or they are of a video of other than `size` tokens."""
        known_size, figures = self._known.get(-1 if index is None else index, (None, None))
        return figures if known_size == size else None

    def put(self, index: int | None, size: int, *figures: Tensor) -> None:
        """Keep figures `(C,)` of a sample of `size` tokens, in the order of the names."""
        if index is not None:
            self._known[index] = self._unshared[index] = (size, tuple(one.detach().cpu() for one in figures))

    def clear(self) -> None:
        """Forget all samples."""
        self._known, self._unshared = {}, {}

    def share(self, num_processes: int) -> None:
        """Tell the other processes what is new; all call it at the same time."""
        if num_processes > 1:
            for found in gather_object([self._unshared]):
                self._known |= found
        self._unshared = {}

    def save(self, folder: Path) -> None:
        """Write `samples`, `counts` and `sizes`, a number a sample each, and under each name the figures of all behind each other.

        Raises:
            OSError: the file cannot be written.
        """
        columns = zip(*(figures for _, figures in self._known.values()), strict=True)
        joined = [torch.cat(column) for column in columns] or [torch.zeros(0) for _ in self.names]
        tensors = dict(zip(self.names, joined, strict=True))
        tensors["samples"] = torch.tensor([*self._known], dtype=torch.long)
        tensors["counts"] = torch.tensor([len(figures[0]) for _, figures in self._known.values()], dtype=torch.long)
        tensors["sizes"] = torch.tensor([size for size, _ in self._known.values()], dtype=torch.long)
        file = folder / self.file
        with replaced(file) as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:
                raise OSError(f"{file} cannot be written ({error}). Free disk space, and resume.") from error

    def load(self, folder: str) -> bool:
        """Know what a checkpoint knows, and nothing else; whether it has the file."""
        self.clear()
        file = Path(folder, self.file)
        if not file.is_file():
            return False
        tensors = load_file(file)
        counts = tensors["counts"].tolist()
        figures = zip(*(tensors[name].split(counts) for name in self.names), strict=True)
        found = zip(tensors["sizes"].tolist(), figures, strict=True)
        self._known = dict(zip(tensors["samples"].tolist(), found, strict=True))
        return True
