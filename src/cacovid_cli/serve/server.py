"""Listening: uvicorn around the application, until the process is told to end."""

import gc
import logging

import uvicorn
from transformers import PreTrainedModel, ProcessorMixin

from cacovid_hf.compressors import Compressor

from ..terminal import is_loopback
from .app import make_app
from .connections import Connections, bounded_protocol
from .limits import Limits

_MOST_HEADERS = 64 << 10  # bytes


def uvicorn_config(
    name: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    limits: Limits,
    host: str,
    port: int,
    log_level: str = "info",
    compressor: Compressor | None = None,
) -> uvicorn.Config:
    """Return the settings of a server for a model (see `make_app`)."""
    connections = Connections(limits)
    return uvicorn.Config(
        make_app(name, model, processor, limits, connections, compressor),
        host=host,
        port=port,
        log_level=log_level,
        http=bounded_protocol(connections),
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_MOST_HEADERS,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
    )


def serve(
    name: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    limits: Limits,
    host: str,
    port: int,
    compressor: Compressor | None = None,
) -> None:
    """Serve a model until the process is interrupted; what runs then has `limits.shutdown_seconds` to end."""
    config = uvicorn_config(name, model, processor, limits, host, port, compressor=compressor)
    if not limits.api_keys and not is_loopback(host):
        logging.getLogger("uvicorn.error").warning(
            f"Everybody who reaches {host}:{port} may ask this server: set --api-key, or listen at 127.0.0.1."
        )
    # No thread runs while all objects are looked at. Half a million are the libraries', and stay.
    gc.collect()
    gc.freeze()
    gc.collect()  # of what is left: Python waits with its next full collection until a quarter more objects are there than at the last one
    uvicorn.Server(config).run()
