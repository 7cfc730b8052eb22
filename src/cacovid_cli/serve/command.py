"""The command `cacovid serve`: its options, which are named as vLLM's where they mean the same."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..terminal import Method, Revision, check_address, is_loopback, progress, quiet_libraries
from .heap import share_one_heap
from .limits import Limits

KEY_VARIABLE = "CACOVID_API_KEY"
_MIB = 1 << 20
_DEFAULT = Limits()
_MEDIA = {"video": "videos", "image": "images"}


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="As for `cacovid ask`. Default: the tiny model inside this package."),
    ] = None,
    revision: Revision = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to listen at.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What requests call the model. Default: its Hub id or folder.")
    ] = None,
    retention_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="R", help="Of requests that say nothing, as for `cacovid ask`. Default: the model's, or all."
        ),
    ] = None,
    compressor: Method = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            envvar=KEY_VARIABLE,
            help="Asked for at /v1/, as Authorization: Bearer KEY. Repeat for more.",
        ),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host headers that are answered. * is any. Default: this machine's, if only it is listened to.",
        ),
    ] = None,
    allowed_local_media_path: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Files below it may be named in requests. Default: none. Repeat for more."),
    ] = None,
    allowed_media_domains: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these hosts are asked for videos and pictures. Repeat for more."),
    ] = None,
    allow_private_addresses: Annotated[
        bool,
        typer.Option("--allow-private-addresses", help="Also ask hosts of private networks and of this machine."),
    ] = False,
    limit_mm_per_prompt: Annotated[
        str, typer.Option(metavar="JSON", help="Videos and pictures in a request.")
    ] = json.dumps({"video": _DEFAULT.videos, "image": _DEFAULT.images}),
    max_model_len: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens of prompt and answer. Default: the model's positions."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="The longest answer that a request may ask for.")
    ] = _DEFAULT.new_tokens,
    max_num_beams: Annotated[
        int, typer.Option(metavar="N", min=1, help="The most beams that a request may ask for.")
    ] = _DEFAULT.beams,
    max_frames: Annotated[
        int, typer.Option(metavar="N", min=1, help="The most frames of a video that a request may ask for.")
    ] = _DEFAULT.frames,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of all frames and pictures of a request, before they are scaled.")
    ] = _DEFAULT.held_pixels,
    max_request_mb: Annotated[
        int, typer.Option(metavar="MB", min=1, help="The largest body of a request.")
    ] = _DEFAULT.body // _MIB,
    max_download_mb: Annotated[
        int, typer.Option(metavar="MB", min=1, help="The most that is fetched for a request.")
    ] = _DEFAULT.download // _MIB,
    media_timeout: Annotated[
        float,
        typer.Option(metavar="S", min=0.1, help="Seconds to fetch the videos of a request, and again to decode them."),
    ] = _DEFAULT.reading_seconds,
    max_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests at a time. Further ones get status 503.")
    ] = _DEFAULT.requests,
    max_connections: Annotated[
        int, typer.Option(metavar="N", min=1, help="Open connections. The one idle for longest makes way.")
    ] = _DEFAULT.connections,
    shutdown_timeout: Annotated[
        float, typer.Option(metavar="S", min=1, help="Seconds for running requests, told to end by SIGTERM or Ctrl-C.")
    ] = _DEFAULT.shutdown_seconds,
) -> None:
    """Serve a model over HTTP as OpenAI's API does.

    A request may say its own retention_ratio and compressor (docs/how_to/serve.md).
    """
    share_one_heap()
    with progress("Starting torch and transformers"):
        from cacovid_hf import auto, tiny
        from cacovid_hf.evaluation.methods import check_method, make_method
        from cacovid_hf.ratio import keeps_all, parse_ratio, resolve

        from .. import ask as asking
        from . import server
    name = str(tiny.model_path()) if model is None else model
    ratio = None if retention_ratio is None else parse_ratio(retention_ratio, "--retention-ratio")
    if compressor is not None:
        check_method(compressor)
    check_address(host, port)
    limits = Limits(
        api_keys=_keys(api_key or ()),
        hosts=_hosts(host, allowed_hosts),
        media_hosts=None if allowed_media_domains is None else tuple(one.lower() for one in allowed_media_domains),
        media_folders=_folders(allowed_local_media_path or []),
        private_addresses=allow_private_addresses,
        **_media_counts(limit_mm_per_prompt),
        positions=max_model_len,
        new_tokens=max_new_tokens,
        beams=max_num_beams,
        frames=max_frames,
        held_pixels=max_pixels,
        body=max_request_mb * _MIB,
        bodies=max(_DEFAULT.bodies, 2 * max_request_mb * _MIB),
        download=max_download_mb * _MIB,
        reading_seconds=media_timeout,
        requests=max_requests,
        connections=max_connections,
        shutdown_seconds=shutdown_timeout,
    )
    with quiet_libraries(bars=True, warnings=True):
        config = auto.load_config(name, revision)
        processor = auto.load_processor(name, config, revision)
        loaded = auto.load_model(name, config, revision)
    if ratio is not None:
        loaded.config.retention_ratio = ratio  # type: ignore[union-attr]
    method = None if compressor is None else make_method(compressor, loaded)  # type: ignore[arg-type]
    ratios = resolve(None, loaded.config, 1)  # of requests without a ratio of their own
    if not keeps_all(ratios):
        (method or loaded.resolve_compressor(None)).check(loaded, ratios)
    if (method is None or method.uses_policy) and not loaded.config.policy_trained:  # type: ignore[union-attr]
        typer.echo(f"note    {asking.UNTRAINED}")
    called = served_model_name or ("tiny" if model is None else Path(name).name if Path(name).is_dir() else name)
    server.serve(called, loaded, processor, limits, host, port, method)


def _keys(given: Sequence[str]) -> tuple[str, ...]:
    """Return the keys; those of the environment as they stand there, since typer drops an empty one and splits at spaces."""
    alone = os.environ.get(KEY_VARIABLE)
    return (alone,) if alone is not None and list(given) == alone.split() else tuple(given)


def _hosts(host: str, allowed: list[str] | None) -> tuple[str, ...] | None:
    """Names in `Host` headers that are answered: against pages of a browser on this machine whose name resolves to it."""
    if allowed is not None:
        return None if "*" in allowed else tuple(name.lower() for name in allowed)
    return ("localhost", "127.0.0.1", "::1", host.lower()) if is_loopback(host) else None


def _folders(paths: list[Path]) -> tuple[str, ...]:
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"--allowed-local-media-path {path} is not a folder: give one that is there.")
    return tuple(str(path.resolve()) for path in paths)


def _media_counts(text: str) -> dict[str, int]:
    """Fields of `Limits` from vLLM's form, such as `{"video": 2}`."""
    counts: Any = None
    with contextlib.suppress(ValueError):
        counts = json.loads(text)
    if not isinstance(counts, dict) or not all(
        name in _MEDIA and type(count) is int and count >= 0 for name, count in counts.items()
    ):
        raise ValueError(
            f'--limit-mm-per-prompt={text!r} is not a JSON object of whole numbers: write {{"video": 2, "image": 4}}.'
        )
    return {_MEDIA[name]: count for name, count in counts.items()}
