"""Ranges of settings."""

import math
from numbers import Integral, Real


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Refuse a setting outside `[least, most]`, and one that is no number.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= value <= most:
        raise ValueError(f"{name}={value!r} is out of range: give a number in [{least:g}, {most:g}].")


def check_count(name: str, value: int) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} is out of range: give a whole number from 1.")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that a softmax cannot have.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} is out of range: give a number above 0.")
