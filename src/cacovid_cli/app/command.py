"""The command `cacovid app`."""

from typing import Annotated

import typer

from ..terminal import Revision, check_address, is_loopback, progress, quiet_libraries

EMBEDDED_NOTICE = (
    "The embedded tiny model knows its own synthetic clips only. Start the page with --model for videos of your own."
)
UNTRAINED_NOTICE = "The policy is untrained, so that cacovid keeps a random subset. The other methods need no training."


def app(
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="As for `cacovid ask`. Default: the tiny model inside this package."),
    ] = None,
    revision: Revision = None,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen at. 0.0.0.0 lets others on the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to listen at.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    max_new_tokens: Annotated[int, typer.Option(metavar="M", min=1, help="Longest answer, in tokens.")] = 64,
    max_upload_mb: Annotated[int, typer.Option(metavar="MB", min=1, help="The largest video to upload.")] = 500,
) -> None:
    """Open a page to ask about videos and see which tokens were kept.

    Nothing leaves this machine: no public link, no telemetry.
    """
    with progress("Starting torch, transformers and gradio"):
        from cacovid_hf import auto, tiny
        from cacovid_hf.utils.extras import pip_install

        from .line import Line
        from .studio import Studio, warm_up

        try:
            from . import page as pages
        except ImportError as error:
            raise ImportError(f"The page needs gradio and matplotlib ({error}): {pip_install('demo')}") from None
    name = tiny.model_path() if model is None else model
    with quiet_libraries(bars=model is not None):
        config = auto.load_config(name, revision)
        check_address(host, port)
        processor = auto.load_processor(name, config, revision)
        studio = Studio(auto.load_model(name, config, revision), processor)
        with progress("Warming up"):
            warm_up(studio, tiny.clips()[0].path)
    notice = EMBEDDED_NOTICE if model is None else "" if studio.model.config.policy_trained else UNTRAINED_NOTICE
    title = "embedded tiny model" if model is None else str(model)
    page = pages.make_page(studio, Line(), title, notice, max_new_tokens=max_new_tokens)
    address = pages.launch(page, host, port, open_browser=open_browser, max_upload_mb=max_upload_mb)
    typer.echo(f"The page is at {address} (Ctrl-C ends it).")
    if not is_loopback(host):
        typer.echo(f"Everybody who reaches {host}:{port} may ask.")
    page.block_thread()
