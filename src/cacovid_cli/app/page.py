"""The page of `cacovid app`: components of gradio around `report` and `views`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads them once: nothing about its use leaves this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from cacovid_hf.compressors import COMPRESSORS, CaCoVid, DivPrune
from cacovid_hf.ratio import AUTO, Ratio
from cacovid_hf.tiny import ExampleClip, clips

from . import views
from .line import Line
from .map_view import maps
from .report import Form, Report, Visitors, ask, ask_at_all_ratios
from .studio import Studio

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
NO_OTHER = "none"
# Visitors that are answered or wait for it; gradio's own queue takes further ones.
MOST_WAITING = 24


def make_page(
    studio: Studio, line: Line, title: str, notice: str = "", ratio: float = 0.25, max_new_tokens: int = 64
) -> gr.Blocks:
    """Return the page, to be launched.

    Args:
        studio: answers.
        line: of those who wait for it.
        title: the model's name.
        notice: a line beneath it.
        ratio: that the slider begins with.
        max_new_tokens: that the form begins with.
    """
    visitors = Visitors()
    examples = _examples(clips())
    # A policy that is not trained chooses as well as chance.
    start = CaCoVid.name if studio.model.config.policy_trained else DivPrune.name
    methods = [CaCoVid.name, *sorted(name for name in COMPRESSORS if name != CaCoVid.name)]

    with gr.Blocks(title="cacovid", analytics_enabled=False, delete_cache=(3600, 24 * 3600), fill_width=True) as page:
        gr.HTML(views.heading(title, notice), elem_id="cv-heading")
        with gr.Row():
            with gr.Column(min_width=300):
                example = gr.Dropdown(list(examples), value=next(iter(examples)), label="Example", elem_id="cv-example")
                first = next(iter(examples.values()))
                video = gr.Video(first[0], label="Video", sources=["upload"], height=240, elem_id="cv-video")
                question = gr.Textbox(first[1], label="Question", elem_id="cv-question", max_lines=4)
                with gr.Row():
                    method = gr.Dropdown(methods, value=start, label="Method", min_width=130, elem_id="cv-method")
                    other = gr.Dropdown(
                        [NO_OTHER, *methods], value=NO_OTHER, label="Compare with", min_width=130, elem_id="cv-other"
                    )
                with gr.Accordion("More settings", open=False):
                    frames = gr.Number(None, label="Most frames (empty: the model's own)", precision=0, minimum=1)
                    longest = gr.Number(max_new_tokens, label="Longest answer, in tokens", precision=0, minimum=1)
                    with_all = gr.Checkbox(True, label="Answer with all tokens too")
            with gr.Column(min_width=300):
                with gr.Row():
                    go = gr.Button("Ask", variant="primary", elem_id="cv-ask", min_width=90)
                    table = gr.Button("All ratios", elem_id="cv-table", min_width=90)
                    stop = gr.Button("Stop", elem_id="cv-stop", interactive=False, min_width=90)
                status = gr.HTML(views.status(Report(status="Ready")), elem_id="cv-status")
                answers = gr.HTML(views.answers(Report()), elem_id="cv-answers")
                costs = gr.HTML("", elem_id="cv-costs")
                times = gr.HTML("", elem_id="cv-times")
        with gr.Row(elem_id="cv-ratio", equal_height=True):
            percent = gr.Slider(
                1, 100, value=round(100 * ratio), step=1, label="Tokens kept, %", scale=4, elem_id="cv-slider"
            )
            auto = gr.Checkbox(
                False, label="auto", info="as many as the policy would keep", scale=1, min_width=90, elem_id="cv-auto"
            )
        shown_maps = gr.HTML(maps(Report(), ratio), elem_id="cv-maps")
        ratios = gr.HTML("", elem_id="cv-ratios")

        places = {
            status: views.status,
            answers: views.answers,
            costs: views.costs,
            times: views.times,
            ratios: views.ratios,
        }
        form = [video, question, percent, auto, method, other, frames, longest, with_all]
        outputs = [*places, shown_maps, go, table, stop]

        def follow(reports: Iterator[Report], at: Ratio) -> Iterator[dict[Any, Any]]:
            before: dict[Any, str] = {}
            drawn: Any = None
            for report in reports:
                now = {place: view(report) for place, view in places.items()}
                update: dict[Any, Any] = {place: words for place, words in now.items() if before.get(place) != words}
                before = now
                if drawn != report.choices:
                    update[shown_maps], drawn = maps(report, at), report.choices
                update[go] = update[table] = gr.update(interactive=not report.running)
                update[stop] = gr.update(interactive=report.running)
                yield update

        def on_ask(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            asked = _form(*values)
            yield from follow(ask(studio, line, visitors.of(request.session_hash), asked), asked.ratio)

        def on_table(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            asked = _form(*values)
            yield from follow(ask_at_all_ratios(studio, line, visitors.of(request.session_hash), asked), asked.ratio)

        def on_move(percent: float, auto: bool, request: gr.Request) -> str:
            return maps(visitors.of(request.session_hash).report, _ratio(percent, auto))

        def on_stop(request: gr.Request) -> None:
            visitors.of(request.session_hash).interrupt.set()

        def on_example(name: str) -> tuple[str, str]:
            return examples[name]

        def on_leave(request: gr.Request) -> None:
            visitors.leave(request.session_hash)

        working: dict[str, Any] = dict(
            inputs=form,
            outputs=outputs,
            concurrency_limit=MOST_WAITING,
            show_progress="hidden",
            api_visibility="private",
        )
        at_once: dict[str, Any] = dict(queue=False, show_progress="hidden", api_visibility="private")
        gr.on([go.click, question.submit], on_ask, trigger_mode="once", **working)
        table.click(on_table, trigger_mode="once", **working)
        stop.click(on_stop, None, None, **at_once)
        example.input(on_example, example, [video, question], **at_once)
        for event in (percent.change, auto.change):
            event(on_move, [percent, auto], shown_maps, trigger_mode="always_last", **at_once)
        page.unload(on_leave)
    page.queue(max_size=2 * MOST_WAITING, default_concurrency_limit=MOST_WAITING)
    return page


def launch(page: gr.Blocks, host: str, port: int | None, *, open_browser: bool, max_upload_mb: int) -> str:
    """Show a page, in threads of its own.

    Args:
        page: from `make_page`.
        host: to listen at.
        port: likewise; None: the first free one from 7860 on.
        open_browser: whether to open it here.
        max_upload_mb: the largest video.

    Returns:
        Its address.

    Raises:
        OSError: the port is taken.
    """
    _, local, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        max_file_size=max_upload_mb << 20,
        allowed_paths=[str(clips()[0].path.parent)],
        theme=_theme(),
        css=_CSS,
        # Without gradio's try whether localhost answers, through the proxy and in three seconds, which asks for a public link if not.
        _frontend=False,
    )
    return local


def _theme() -> gr.themes.Base:
    """Return gradio's Soft, with words and edges that stand out from what is behind them."""
    soft = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return soft.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        input_border_width="1px",
        input_border_color="*neutral_300",
        checkbox_border_width="1px",
        checkbox_border_color="*neutral_500",
    )


def _form(
    video: str | None,
    question: str,
    percent: float,
    auto: bool,
    method: str,
    other: str,
    frames: float | None,
    longest: float | None,
    with_all: bool,
) -> Form:
    methods = (method,) if other in (NO_OTHER, method) else (method, other)
    return Form(
        path=video,
        question=question,
        ratio=_ratio(percent, auto),
        methods=methods,
        num_frames=int(frames) if frames else None,
        max_new_tokens=int(longest or 64),
        with_all=with_all,
    )


def _ratio(percent: float, auto: bool) -> Ratio:
    return AUTO if auto else percent / 100


def _examples(clips: Sequence[ExampleClip]) -> dict[str, tuple[str, str]]:
    """Path and question of every example, by what the list says."""
    return {
        f"Clip {number}: {question.text}": (str(clip.path), question.text)
        for number, clip in enumerate(clips, start=1)
        for question in clip.questions
    }
