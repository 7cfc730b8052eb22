"""What reaches a stock model's language model."""

from typing import Any


class _Reached(Exception):
    """The language model was called."""


def reaching_language_model(stock, inputs) -> dict[str, Any]:
    """The keyword arguments with which a stock forward calls its language model."""
    found: dict[str, Any] = {}

    def stop(module, args, kwargs):
        found.update(kwargs)
        raise _Reached

    handle = stock.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        stock(**inputs, use_cache=False)
    except _Reached:
        return found
    finally:
        handle.remove()
    raise RuntimeError("The stock model did not call its language model.")
