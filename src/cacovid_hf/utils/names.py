"""Names that a caller mistyped."""

import difflib
from collections.abc import Iterable


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise a `ValueError` if a name is unknown, with the one that may be meant."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"{name} is no {what}: " + (f"did you mean {near[0]}?" if near else "leave it out."))
