"""Names that a caller mistyped."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str], otherwise: str) -> str:
    """Return the remedy of an error about an unknown name: the known name that may be meant, or `otherwise` if none is close.

    Capitals and white space around a name do not count.
    """
    spelled = {one.lower(): one for one in known}
    near = difflib.get_close_matches(str(name).strip().lower(), spelled, n=1)
    return f"did you mean {spelled[near[0]]}?" if near else otherwise


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise a `ValueError` if a name is unknown, with the one that may be meant."""
    known = sorted(known)
    for name in given:
        if name not in known:
            raise ValueError(f"{name} is not {what}: {nearest(name, known, 'leave it out.')}")
