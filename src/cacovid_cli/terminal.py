"""What commands share: an option, addresses to listen at, and what they show on the terminal."""

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

# Said beside answers of the model inside this package.
EMBEDDED = "the embedded tiny model answered, which knows synthetic clips only: choose another by --model"
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Commit, branch or tag of the model, if it is a Hub id. Default: main."),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:SETTING=VALUE]",
        help="Compression method, such as divprune. Default: cacovid, the learned policy.",
    ),
]


def process() -> int:
    """Which process this is of those that `accelerate launch` started on this machine; 0 is the one that speaks for all."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def said_of_system(error: OSError) -> str:
    """Return what an error of the system says: this package's own words, or the file, the reason and the remedy."""
    if error.filename is None or error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename} cannot be used ({error.strerror}): check the path, and who may read and write there."


@contextmanager
def progress(description: str) -> Iterator[None]:
    """Say on stderr what takes time; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or process() > 0:
        yield
        return
    with console.status(f"{description} ..."):
        yield


@contextmanager
def quiet_libraries(bars: bool, warnings: bool = False) -> Iterator[None]:
    """Keep the log of transformers (but for its warnings, if asked) and the Hub off stderr, and their bars where they are not wanted or
    stderr is no terminal.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    (logging.set_verbosity_warning if warnings else logging.set_verbosity_error)()
    hub_logging.set_verbosity_error()
    if not (bars and sys.stderr.isatty()):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            logging.enable_progress_bar()


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at, before a model is loaded for it.

    Raises:
        ValueError: another program listens there, or this machine has no such address.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened at ({(error.strerror or str(error)).partition(' (while')[0]}): choose another --port or --host."
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen at."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
