"""The command line, thin: `ask` and `demo` over `cacovid_cli.ask`, `evaluate` and `report` over `cacovid_hf.evaluation`.

Nothing heavy is imported before a command runs, so that `cacovid --help` answers at once.
"""

import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app.command import app as show_page
from .examples import example, extra_of, group, overview
from .serve.command import serve
from .terminal import EMBEDDED, Method, Revision, process, progress, quiet_libraries, said_of_system
from .watch.command import watch

if TYPE_CHECKING:
    from .ask import Answer

# The class of all wrong uses of the command line, for which typer has no public name.
UsageError: Any = typer.BadParameter.__base__
DEMO_RATIOS = (1.0, 0.25)
# Seconds in which the first process has failed, and the launcher has ended the others, if what fails is the same for all.
_TOGETHER = 30.0

app = typer.Typer(pretty_exceptions_enable=False)
Map = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Draw kept and dropped tokens and their scores to this file (needs matplotlib)."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (`sys.argv` if None) and exit: status 2 and one line on stderr for whatever the user can put right."""
    try:
        status = app(arguments, prog_name="cacovid", standalone_mode=False)
    except typer.Abort:
        status = 130
    except UsageError as error:
        status = _fail(error.format_message())
    except ModuleNotFoundError as error:
        from cacovid_hf.utils.extras import pip_install

        extra = extra_of(sys.argv[1:] if arguments is None else arguments)
        status = _fail(f"{error}: {pip_install(extra)}" if extra else str(error))
    except OSError as error:
        status = _fail(said_of_system(error))
    except (ValueError, ImportError) as error:
        status = _fail(str(error) or type(error).__name__)
    sys.exit(status)


def _command(name: str) -> Any:
    """Register a function as a command, in its group of the help and with its example."""
    return app.command(name=name, rich_help_panel=group(name), epilog=example(name))


@app.callback(invoke_without_command=True, epilog=overview())
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Video language models that read only the video tokens that contribute to the answer."""
    if version:
        typer.echo(f"cacovid-hf {metadata.version('cacovid-hf')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@_command("ask")
def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file or its http(s) address.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="A CaCoVid checkpoint, or a stock model of a supported family, then with an untrained policy: a folder or a Hub id. "
            "Default: the tiny model inside this package.",
        ),
    ] = None,
    revision: Revision = None,
    retention_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="Fraction of the video tokens to keep, in (0, 1], or auto[:FLOOR:CAP]: as many as the policy would. Default: the model's, or all.",
        ),
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(metavar="N", help="Largest number of frames to sample. Default: the processor's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="M", help="Longest answer, in tokens. Default: 64, of the embedded model 8.")
    ] = None,
    save_map: Map = None,
    compressor: Method = None,
) -> None:
    """Answer a question about a video."""
    with progress("Starting torch and transformers"):
        from cacovid_hf import auto, tiny
        from cacovid_hf.evaluation.methods import check_method, make_method
        from cacovid_hf.processing import sample_video
        from cacovid_hf.ratio import parse_ratio

        from . import ask as asking
        from .maps import check_map_target
    # What can be refused is refused before a model of many gigabytes is loaded.
    ratio = None if retention_ratio is None else parse_ratio(retention_ratio, "--retention-ratio")
    if compressor is not None:
        check_method(compressor)
    if save_map is not None:
        check_map_target(save_map)
    if max_new_tokens is None:
        max_new_tokens = 8 if model is None else 64  # the embedded model answers in a word
    asking.check_asking(question, max_new_tokens)
    with quiet_libraries(bars=model is not None):
        name = tiny.model_path() if model is None else model
        config = auto.load_config(name, revision)
        processor = auto.load_processor(name, config, revision)
        with progress("Reading the video"):
            sampled = sample_video(processor, video, num_frames)
        loaded = auto.load_model(name, config, revision)
        with progress("Answering"):
            answer = asking.ask(
                loaded,
                processor,
                sampled,
                question,
                retention_ratio=ratio,
                compressor=None if compressor is None else make_method(compressor, loaded),
                max_new_tokens=max_new_tokens,
            )
    if ratio is None and loaded.config.retention_ratio is None:
        typer.echo("note    nothing was dropped: choose how much to keep by --retention-ratio", err=True)
    typer.echo(f"{answer.text or '(no words)'}\n")
    share = answer.kept / answer.total
    layers = " as a mean over the layers" if isinstance(answer.kept, float) else ""
    typer.echo(f"tokens  {answer.kept:.10g} of {answer.total} kept{layers} ({share:.1%}), {len(sampled.frames)} frames")
    typer.echo(f"times   {', '.join(f'{stage} {_duration(seconds)}' for stage, seconds in answer.times.items())}")
    if answer.notice:
        typer.echo(f"note    {answer.notice}")
    if model is None:
        typer.echo(f"note    {EMBEDDED}", err=True)
    if save_map is not None:
        _write_map(save_map, question, answer)
        typer.echo(f"map     {save_map}")


@_command("demo")
def demo(
    num_questions: Annotated[int, typer.Option(metavar="N", min=1, help="Fresh questions for the accuracy.")] = 500,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Of the fresh clips and questions.")] = 0,
    save_map: Map = None,
) -> None:
    """Ask the embedded tiny model about a clip, with all tokens and with a quarter.

    Beside each answer stands the accuracy on fresh clips and questions, measured now.
    """
    with progress("Starting torch and transformers"):
        from cacovid_hf import auto, tiny
        from cacovid_hf.processing import sample_video
        from cacovid_hf.tiny.accuracy import answer_accuracy

        from . import ask as asking
        from .maps import check_map_target
    if save_map is not None:
        check_map_target(save_map)
    clip = tiny.clips()[0]
    question = clip.questions[0]
    with quiet_libraries(bars=False):
        with progress("Loading the tiny model and a clip"):
            processor = auto.load_processor(tiny.model_path())
            model = auto.load_model(tiny.model_path())
            sampled = sample_video(processor, clip.path)
        typer.echo(f"video     {clip.path}")
        typer.echo(f"question  {question.text}")
        typer.echo(f"expected  {question.answer}\n")
        typer.echo(f"ratio  answer      tokens        accuracy on {num_questions} fresh questions")
        for ratio in DEMO_RATIOS:
            answer = asking.ask(model, processor, sampled, question.text, retention_ratio=ratio, max_new_tokens=8)
            measured = answer_accuracy(
                model,
                processor,
                num_questions=num_questions,
                seed=seed,
                retention_ratio=ratio,
                progress=f"Asking at retention ratio {ratio}",
            )
            tokens = f"{answer.kept} of {answer.total}"
            accuracy = f"{measured.accuracy:.1%} ± {measured.standard_error:.1%}"
            typer.echo(f"{ratio:<7.2f}{answer.text:<10}  {tokens:<14}{accuracy}")
    if answer.notice:
        typer.echo(f"\nnote: {answer.notice}")
    if save_map is not None:
        _write_map(save_map, question.text, answer)
        typer.echo(f"\nmap: {save_map} (at retention ratio {DEMO_RATIOS[-1]})")


_command("app")(show_page)
_command("watch")(watch)
_command("serve")(serve)


@_command("train")
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Model, data and settings, as docs/how_to/train.md says.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last complete checkpoint in the config's output_dir.")
    ] = False,
) -> None:
    """Train a policy from the frozen model's own right and wrong answers.

    For several GPUs: `accelerate launch -m cacovid_hf train CONFIG.yaml`. Ctrl-C leaves the last checkpoint, to `--resume` from.
    """
    with progress("Starting torch and transformers"):
        from cacovid_hf.tiny import model_path
        from cacovid_hf.training.from_yaml import run_training
    with quiet_libraries(bars=False, warnings=True):
        try:
            told = run_training(config, resume, default_model=model_path())
        except KeyboardInterrupt as stopped:
            if str(stopped) and process() == 0:
                typer.echo(f"cacovid: {stopped}", err=True)
            raise
        if told:
            typer.echo(told)


@_command("blind-filter")
def blind_filter(
    samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="A JSON or JSONL file, or a dataset's name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="To be written, with OUT.jsonl.summary.json.")],
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Folder or Hub id. Default: the tiny model inside this package.")
    ] = None,
    threshold: Annotated[float, typer.Option(metavar="R", help="Reward from which on an answer is right.")] = 0.5,
    batch_size: Annotated[int, typer.Option(metavar="B", min=1, help="Questions in one forward.")] = 16,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Read only the first N samples.")] = None,
) -> None:
    """Leave out samples that the model answers without their video."""
    with progress("Starting torch and transformers"):
        from cacovid_hf.tiny import model_path
        from cacovid_hf.training.from_yaml import run_blind_filter
    with quiet_libraries(bars=model is not None):
        for line in run_blind_filter(
            samples, out, model or model_path(), threshold=threshold, batch_size=batch_size, limit=limit
        ):
            typer.echo(line)


@_command("evaluate")
def evaluate(
    output: Annotated[
        Path, typer.Option(metavar="JSON", help="Written cell by cell. Finished cells are not run again.")
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FOLDER]", help="tiny, tiny_mp4, or a local copy: videomme=FOLDER. Repeat for more."
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SETTING=VALUE]", help="Compression method, or all. Repeat for more. Default: all of them."
        ),
    ] = None,
    ratio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R",
            help="Fraction of the video tokens kept, 1.0 for the stock model. Repeat for more. Default: 1.0, 0.25, 0.2, 0.15 and 0.1.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Folder or Hub id, or tiny (the default). Repeat for more.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N questions of each benchmark.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Of the tiny benchmark.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Questions in one call of generate.")] = 1,
    num_frames: Annotated[int | None, typer.Option(metavar="F", help="Largest number of frames a video.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="M", help="Default: each benchmark's.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the models. auto is their own.")] = "auto",
    attention: Annotated[str | None, typer.Option(help="Attention implementation of the backbones.")] = None,
) -> None:
    """Measure methods x ratios x models x benchmarks.

    It writes JSON, a Markdown table and two plots. Started again, it goes on where it was stopped. For several GPUs: `accelerate launch -m cacovid_hf evaluate ...`.
    """
    with progress("Starting torch and transformers"):
        from cacovid_hf.evaluation.run import run_evaluation
        from cacovid_hf.evaluation.sweep import Settings
    given: dict[str, Any] = {
        "methods": _split(method) or ["all"],
        "ratios": [_ratio(word, "--ratio") for word in _split(ratio)],
        "models": model,
        "datasets": dataset,
    }
    settings = Settings(
        **{name: tuple(value) for name, value in given.items() if value},
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        num_frames=num_frames,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        attention=attention,
    )
    with quiet_libraries(bars=False):
        try:
            for line in run_evaluation(settings, output):
                typer.echo(line)
        except KeyboardInterrupt:
            if process() == 0:
                typer.echo("cacovid: stopped. The same command goes on behind the last answers.", err=True)
            raise


@_command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="What `cacovid evaluate` wrote.")],
    published: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="A published table to set the runs beside. A wrong name lists them."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Draw the two plots there too.")] = None,
) -> None:
    """Print runs as Markdown tables, beside published figures.

    The figures are of the same benchmarks and the same definition of a ratio.
    """
    from cacovid_hf.evaluation.run import run_report

    for line in run_report(runs, published, plots):
        typer.echo(line)


@_command("import-published")
def import_published(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The checkpoint of the published code: a folder or a Hub id.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the policy under this package's names.")],
    base: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The backbone it was trained for. Default: told by the source and its sizes."),
    ] = None,
    base_revision: Annotated[
        str | None, typer.Option(metavar="REV", help="The backbone's commit, branch or tag. Default: its current one.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Of SOURCE, if it is a Hub id.")] = None,
    accept_license: Annotated[
        bool,
        typer.Option("--accept-license", help="Answer the license question beforehand: you may use these weights."),
    ] = False,
) -> None:
    """Take the policy out of a checkpoint of the published code.

    The language model in it is not read.
    """
    with progress("Starting torch and transformers"):
        from cacovid_hf.checkpoints.import_published import convert, find
    with quiet_libraries(bars=True):
        found = find(source, base=base, base_revision=base_revision, revision=revision, to=to)
        typer.echo(found.license_question)
        if not accept_license:
            typer.confirm("Import them?", abort=True)
        for line in convert(found, to):
            typer.echo(line)


def _split(words: list[str] | None) -> list[str]:
    """Values of a repeated option, each of which may hold several with commas between."""
    return [part.strip() for word in words or () for part in word.split(",") if part.strip()]


def _ratio(words: str, name: str) -> float:
    from cacovid_hf.ratio import check_retention_ratio

    value: float | str
    try:
        value = float(words)
    except ValueError:
        value = words  # the check says what is wrong with it
    return check_retention_ratio(value, name)  # type: ignore[arg-type]


def _write_map(path: Path, question: str, answer: "Answer") -> None:
    from .maps import save_map

    caption = f"{question}  {answer.text}"
    save_map(path, answer.video.frames, answer.selection, seconds=answer.video.timestamps, caption=caption)


def _fail(message: str) -> int:
    if process() > 0:
        # What fails in every process is told once: the launcher ends this one when the first has failed.
        time.sleep(_TOGETHER)
        message = f"process {os.environ.get('RANK', process())}: {message}"
    typer.echo(f"cacovid: error: {' '.join(message.split())}", err=True)
    return 2


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
