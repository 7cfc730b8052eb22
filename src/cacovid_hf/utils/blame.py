"""One clear error for whatever stock code raises about the values of a file."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LONGEST = 300  # characters of the reason


@contextmanager
def blamed_on(file: str, name: str) -> Iterator[None]:
    """Turn an exception of the block into a `ValueError` of one line that names the file and the remedy.

    Errors of the system, of memory and of missing packages pass through: they do not come from the file's values.

    Args:
        file: name of the file, or of several.
        name: folder or Hub id that it belongs to.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{file} of {name} cannot be used ({one_line(error)}): copy or download it again.") from error


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line of limited length; of the built-in kinds that say little, with their name."""
    said = " ".join(str(error).split())
    said = said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
