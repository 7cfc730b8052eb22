"""The command `cacovid watch`: its options."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..terminal import EMBEDDED, Revision, progress, quiet_libraries
from . import units


def watch(
    address: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO", help="A video file, a camera (/dev/video0), or a live address (rtsp, rtmp, udp, .m3u8)."
        ),
    ],
    asked: Annotated[
        list[str] | None, typer.Option("--ask", metavar="QUESTION", help="Asked every so often. Repeat for more.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="How often, such as 5s or 1min. Default: once, at the end.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="As for ask. Default: the tiny model inside this package.")
    ] = None,
    revision: Revision = None,
    speed: Annotated[
        str, typer.Option(metavar="X", help="Of a file: 1 is its own, max as fast as the model goes.")
    ] = "1",
    fps: Annotated[float, typer.Option(metavar="F", help="Frames a second that the model sees.")] = 1.0,
    tokens_per_frame: Annotated[int, typer.Option(metavar="N", help="Tokens kept of every frame.")] = 50,
    tokens_per_question: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Video tokens that a question reads. Default: 2048, with the embedded model 72."
        ),
    ] = None,
    memory: Annotated[str, typer.Option(metavar="KIND", help="features or kv.")] = "features",
    max_memory: Annotated[str, typer.Option(metavar="BYTES", help="Bound of the memory, such as 500MB.")] = "1GiB",
    bits: Annotated[int | None, typer.Option(metavar="B", help="Of a stored number: 2, 4, 8, 16 or 32.")] = None,
    seconds: Annotated[str | None, typer.Option("--for", metavar="TIME", help="End after so long.")] = None,
    silence: Annotated[
        str, typer.Option(metavar="TIME", help="A live address without frames for so long ends.")
    ] = "10s",
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the stream there at the end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="M", min=1, help="Longest answer, in tokens.")] = 64,
) -> None:
    """Watch a video as it goes on, and answer questions about all that was seen.

    Type questions while it runs, one per line. Frames that come while the model is busy are dropped but for the newest, and counted.
    """
    with progress("Starting torch and transformers"):
        from cacovid_hf import auto, tiny
        from cacovid_hf.generation.stream.settings import StreamSettings
        from cacovid_hf.utils.files import check_writable

        from . import typed, watching
    settings: dict[str, Any] = {} if model is not None else dict(watching.EMBEDDED_SETTINGS)
    settings |= dict(tokens_per_frame=tokens_per_frame, fps=fps, memory=memory, bits=bits)
    settings["max_memory"] = units.parsed_bytes(max_memory, "--max-memory")
    if tokens_per_question is not None:
        settings["tokens_per_question"] = tokens_per_question
    StreamSettings(**settings)
    if save is not None:
        check_writable(save, "stream")
    options: dict[str, Any] = {
        "every": None if every is None else units.parsed_seconds(every, "--every"),
        "until": None if seconds is None else units.parsed_seconds(seconds, "--for"),
        "silence": units.parsed_seconds(silence, "--silence"),
        "speed": units.parsed_speed(speed),
    }
    watching.checked_questions(asked or (), options["every"])
    with quiet_libraries(bars=model is not None):
        name = tiny.model_path() if model is None else model
        config = auto.load_config(name, revision)
        processor = auto.load_processor(name, config, revision)
        stream = auto.load_model(name, config, revision).stream(processor, **settings)
        with kept_at_the_end(stream, save), terminated_as(signal.default_int_handler):
            watching.watch(
                stream,
                address,
                typer.echo,
                questions=asked or (),
                typed=typed.standard_input(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **options,
            )
    if model is None:
        typer.echo(f"note    {EMBEDDED}", err=True)


@contextmanager
def kept_at_the_end(stream: Any, path: Path | None) -> Iterator[None]:
    """Save the stream even after an error, which must not take hours of memory with it; that error stays the one that is raised."""
    try:
        yield
    except BaseException:
        try:
            _keep(stream, path)
        except Exception as error:  # of the disk, or nobody reads
            with suppress(OSError):
                typer.echo(f"not saved: {error}", err=True)
        raise
    _keep(stream, path)


def _keep(stream: Any, path: Path | None) -> None:
    if path is not None and stream.num_frames:
        with terminated_as(signal.SIG_IGN):  # half a file is none
            stream.save(path)
        typer.echo(f"saved   {path}")


@contextmanager
def terminated_as(handler: Any) -> Iterator[None]:
    """Take SIGTERM, by which service managers end a program, in another way: as Ctrl-C, or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
