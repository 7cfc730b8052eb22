"""Ranges of settings."""

import math


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse a setting outside `[least, most]`, and one that is no number.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        bounds = f"from {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
        raise ValueError(f"{name}={value!r} is out of range: give a number {bounds}.")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that a softmax cannot have.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} is out of range: give a number above 0.")
