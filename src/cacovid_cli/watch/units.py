"""Bytes, times and speeds, as they are typed and shown."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parsed_bytes(words: str, name: str) -> int:
    """Return a number of bytes such as `500MB` or `2GiB`."""
    number, unit = _number_and_unit(words)
    if number is None or unit not in _UNITS or not 1 <= number * _UNITS[unit] < float("inf"):
        raise ValueError(f"{name}={words!r} is not a number of bytes: give one such as 500MB or 2GiB.")
    return int(number * _UNITS[unit])


def parsed_seconds(words: str, name: str) -> float:
    """Return a time such as `5s`, `2min` or `1h`."""
    number, unit = _number_and_unit(words)
    if number is None or unit not in _SECONDS or not 0 < number < float("inf"):
        raise ValueError(f"{name}={words!r} is not a time: give one such as 5s or 2min.")
    return number * _SECONDS[unit]


def parsed_speed(words: str) -> float | None:
    """How fast a file is played; None of `max`: as fast as the model goes."""
    if words == "max":
        return None
    number, unit = _number_and_unit(words.removesuffix("x"))
    if number is None or unit or not 0 < number < float("inf"):
        raise ValueError(f"--speed={words!r}: give a number over 0, such as 2, or max.")
    return number


def _number_and_unit(words: str) -> tuple[float | None, str]:
    digits = words.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    try:
        return float(digits), words.strip()[len(digits) :].strip().lower()
    except ValueError:
        return None, ""


def shown_bytes(size: int) -> str:
    """Return a number of bytes in words."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
