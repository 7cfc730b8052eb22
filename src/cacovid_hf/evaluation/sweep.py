"""Methods x ratios x models x benchmarks: every cell measured side by side with the others, one JSON a run.

Of each batch of samples the videos are decoded, prepared and put through the vision tower once (once more for the stock model and for methods that
read the tower's attention), then every cell answers it, in an order that rotates from batch to batch: what slows the machine down slows all of them. What a batch holds is settled by the benchmark alone, never by the number of processes or by what was run
before, so results are the same for any of them. Rows are logged batch by batch; a run that was stopped goes on behind the last one, and
asks again what could not be read or answered.
"""

import functools
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ProcessorMixin

from .. import auto
from .._compat import attention_implementation
from ..compressors import Compressor
from ..modeling import CaCoVidForConditionalGeneration
from ..ratio import check_retention_ratio, keeps_all
from ..utils.chat import user_message
from ..utils.figures import ALL_TOKENS
from ..utils.provenance import environment
from ..utils.values import one_line
from ..video.files import SampledVideo
from .clips import read_clip
from .datasets import Benchmark, Sample, load_benchmark
from .logs import CellLog, Row, check_row, is_answered
from .methods import describe, expand_methods, make_method, ratio_definition
from .paper_figures import BEFORE_LLM
from .peak_memory import PeakMemory
from .processes import Processes
from .progress import said, shown
from .respond import Response, clock, prepare, respond, with_encoded_videos
from .run_files import FORMAT, file_name, identity, only_writer, read_run, write_run

STAGES = ("decode", "vision", "compression", "prefill", "generation")
# What all cells of a run share: a table of cells that differ in it would compare nothing.
SHARED = ("limit", "seed", "batch_size", "num_frames", "max_new_tokens", "dtype", "attention")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        methods: names as in `methods`, `all` for every registered one.
        ratios: fractions of the video tokens kept, in (0, 1]; 1.0 is the stock model, once a model and benchmark.
        models: folders or Hub ids.
        datasets: as in `datasets.load_benchmark`.
        limit: only the first so many samples of each benchmark.
        seed: of the tiny benchmark, and of torch.
        batch_size: samples in one call of `generate`. With 1 no answer can depend on what else is in its batch; above, padding may change the last
            bits of a logit.
        num_frames: at most so many frames of a video; None: each processor's setting.
        max_new_tokens: of a response; None: each benchmark's.
        dtype: of the models; `auto` is their own.
        attention: attention implementation of the backbones; None is transformers' choice.
    """

    methods: Sequence[str] = ("cacovid", "uniform", "random")
    ratios: Sequence[float] = (1.0, 0.25, 0.2, 0.15, 0.1)
    models: Sequence[str] = ("tiny",)
    datasets: Sequence[str] = ("tiny",)
    limit: int | None = None
    seed: int = 0
    batch_size: int = 1
    num_frames: int | None = None
    max_new_tokens: int | None = None
    dtype: str = "auto"
    attention: str | None = None

    def __post_init__(self):
        for name in ("methods", "ratios", "models", "datasets"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: nothing to measure.")
        for ratio in self.ratios:
            check_retention_ratio(ratio)
        for name in ("batch_size", "num_frames", "max_new_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: give at least 1.")
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype={self.dtype!r} is not a dtype of torch: give auto, float32, bfloat16 or float16.")


@dataclass(frozen=True)
class Cell:
    """One place of the table, and everything that its figure depends on."""

    entry: dict[str, Any]
    method: Compressor
    retention_ratio: float
    log: CellLog

    @property
    def key(self) -> str:
        """A hash of everything that the figure depends on."""
        return cell_key(self.entry)


def cell_key(entry: dict[str, Any]) -> str:
    """Return a hash of everything that a cell's figure depends on."""
    parts = {name: entry[name] for name in ("dataset", "model", "method", "retention_ratio", "generation")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def evaluate(settings: Settings, output: Path) -> dict[str, Any] | None:
    """Measure whatever of the settings is not in `output` yet; returns the run, which rank 0 has written (None on the other ranks).

    Logs of single samples go to a folder beside `output` that is named like it.

    Raises:
        ValueError: a setting, a model, a benchmark or a method that is not there; another run is at work on the file; or it was made with
            other settings.
    """
    processes = Processes.join()
    methods = expand_methods(list(settings.methods))
    benchmarks = [load_benchmark(spec, settings.limit, settings.seed) for spec in settings.datasets]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"datasets {', '.join(names)}: a benchmark is named twice.")
    output.parent.mkdir(parents=True, exist_ok=True)
    run = _open_run(output, settings)
    with _writer(output, processes):
        for name in settings.models:
            torch.manual_seed(settings.seed)
            said(f"Loading {name}", processes.rank)
            model, processor = _load(name, settings, processes)
            device = model.device
            weights = {"backbone": fingerprint(model.backbone), "policy": fingerprint(model.policy)}
            for benchmark in benchmarks:
                entries = _cells(settings, methods, name, model, weights, benchmark, output)
                _measure(run, entries, benchmark, model, processor, settings, processes, output, device)
            del model
    return None if processes.rank else run


def _load(
    name: str, settings: Settings, processes: Processes
) -> tuple[CaCoVidForConditionalGeneration, ProcessorMixin]:
    from ..tiny import model_path

    source: Any = model_path() if name == "tiny" else name
    loading: dict[str, Any] = {"dtype": settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)}
    if settings.attention is not None:
        loading["attn_implementation"] = settings.attention
    if processes.world > 1:
        loading["device_map"] = {"": processes.device}
    config = auto.load_config(source)
    processor = auto.load_processor(source, config)
    return auto.load_model(source, config, **loading), processor


def _open_run(output: Path, settings: Settings) -> dict[str, Any]:
    config = {name: value if not isinstance(value, tuple) else list(value) for name, value in asdict(settings).items()}
    config["methods"] = expand_methods(config["methods"])  # `all` of a later version may be more
    if not output.exists():
        return {"benchmark": "evaluation", "format": FORMAT, "config": config, "cells": []}
    run = read_run(output)
    for name in SHARED:
        if (before := run["config"].get(name)) != config[name]:
            raise ValueError(
                f"{output} was measured with {name}={before}, and {name}={config[name]} is asked for: its cells would not compare. Give another --output."
            )
    for name in ("methods", "ratios", "models", "datasets"):
        run["config"][name] = list(dict.fromkeys([*run["config"][name], *config[name]]))
    return run


@contextmanager
def _writer(output: Path, processes: Processes) -> Iterator[None]:
    if processes.rank:
        yield
        return
    with only_writer(output):
        yield


def _cells(
    settings: Settings,
    methods: list[str],
    name: str,
    model: CaCoVidForConditionalGeneration,
    weights: dict[str, str],
    benchmark: Benchmark,
    output: Path,
) -> list[Cell]:
    generation = {
        "batch_size": settings.batch_size,
        "num_frames": settings.num_frames,
        "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention_implementation(model.backbone.config),
    }
    dataset = {"name": benchmark.name, "settings": benchmark.settings, "samples": len(benchmark)}
    check = functools.partial(check_row, num_samples=len(benchmark), stages=STAGES)
    cells = []
    for ratio in dict.fromkeys(settings.ratios):
        whole = keeps_all((ratio,))
        for label in [ALL_TOKENS] if whole else methods:
            method = make_method("uniform" if whole else label, model)
            description = {"name": ALL_TOKENS, "settings": {}} if whole else describe(method)
            by_policy = not whole and method.uses_policy
            entry = {
                "dataset": dataset,
                "model": {
                    "name": name,
                    "backbone": model.config.base_model_name_or_path or model.backbone.config.model_type,
                    "weights": weights["backbone"],
                    "policy": weights["policy"] if by_policy else None,
                    "policy_trained": model.config.policy_trained if by_policy else None,
                },
                "method": {"label": label, **description},
                "retention_ratio": ratio,
                "ratio_definition": BEFORE_LLM if whole else ratio_definition(method),
                "count_rule": "all" if whole else method.count_rule,
                "generation": generation,
                "protocol": benchmark.protocol,
            }
            log_name = file_name(benchmark.name, Path(name).name, label, f"{ratio:g}", cell_key(entry))
            cells.append(Cell(entry, method, ratio, CellLog(output.with_suffix(""), log_name, check)))
    return cells


def _measure(
    run: dict[str, Any],
    cells: list[Cell],
    benchmark: Benchmark,
    model: CaCoVidForConditionalGeneration,
    processor: ProcessorMixin,
    settings: Settings,
    processes: Processes,
    output: Path,
    device: torch.device,
) -> None:
    """Run what is missing of the cells of one model and benchmark, and write it down."""
    finished = {cell_key(entry) for entry in run["cells"] if not entry["broken"]["count"]}
    cells = [cell for cell in cells if cell.key not in finished]
    size = settings.batch_size
    batches = [range(start, min(start + size, len(benchmark))) for start in range(0, len(benchmark), size)]
    logged = {cell.key: cell.log.read() for cell in cells}
    todo: list[tuple[int, Sequence[int], list[Cell]]] = []
    for number, batch in enumerate(batches):
        cells_lacking: dict[Sequence[int], list[Cell]] = {}
        for cell in cells:
            if lacking := _lacking(logged[cell.key], batch):
                cells_lacking.setdefault(lacking, []).append(cell)
        todo += [(number, lacking, chosen) for lacking, chosen in cells_lacking.items()]
    processes.wait()  # nobody writes before all have read
    answered = {key for key, rows in logged.items() if any(map(is_answered, rows.values()))}
    worker = _Worker(benchmark, model, processor, settings, processes.rank, answered)
    described = environment(device)
    described["clock"] = "CPU time of the process" if clock(device) is time.process_time else "wall"
    description = f"{benchmark.name}, batches of {len(todo[0][2])} cells" if todo else ""
    for number, asked, missing in shown(todo[processes.rank :: processes.world], description, processes.rank):
        turn = number % len(missing)
        worker.run(asked, missing[turn:] + missing[:turn])
    processes.wait()
    if processes.rank == 0 and cells:
        run |= described
        for cell in cells:
            _finish(run, cell, benchmark, described)
        order = {name: place for place, name in enumerate(run["config"]["methods"])}
        run["cells"].sort(
            key=lambda entry: (*identity(entry)[:2], order.get(identity(entry)[2], -1), -entry["retention_ratio"])
        )
        write_run(output, run)
    processes.wait()


def _lacking(rows: dict[int, Row], batch: range) -> Sequence[int]:
    """Return what of a batch is to be asked: all of it if it was never asked whole, else what has no answer."""
    if any(index not in rows for index in batch):
        return batch
    return tuple(index for index in batch if not is_answered(rows[index]))


def _finish(run: dict[str, Any], cell: Cell, benchmark: Benchmark, described: dict[str, Any]) -> None:
    """Put a complete cell into the run, in the place of one of other weights or with fewer answers if there was one."""
    rows = cell.log.read()
    refusal = next((row["refused"] for row in rows.values() if "refused" in row), None)
    if refusal is not None:
        run.setdefault("refused", {})["/".join(map(str, identity(cell.entry)))] = refusal
        if not any(map(is_answered, rows.values())):
            cell.log.remove()
        return
    cell.log.merge()
    run.get("refused", {}).pop("/".join(map(str, identity(cell.entry))), None)
    ordered = [rows[index] for index in sorted(rows)]
    run["cells"] = [entry for entry in run["cells"] if identity(entry) != identity(cell.entry)]
    run["cells"].append(
        cell.entry | summary(ordered, benchmark) | {"environment": described, "log": cell.log.path.name}
    )


def summary(rows: list[Row], benchmark: Benchmark) -> dict[str, Any]:
    """Return the figures of a cell from its rows."""
    answered = [row for row in rows if "error" not in row]
    broken = [row for row in rows if "error" in row]
    result: dict[str, Any] = {
        "score": benchmark.score(answered),
        "answered": len(answered),
        "broken": {"count": len(broken), "first": [f"{row['id']}: {row['error']}" for row in broken[:5]]},
        # By sample: right, wrong, answer withheld, broken.
        "outcomes": "".join(
            "x" if "error" in row else {True: "1", False: "0", None: "?"}[row["correct"]] for row in rows
        ),
    }
    videos = [row["video_id"] or row["id"] for row in rows]
    if len(set(videos)) < len(videos):
        result["videos"] = _numbered(videos)
    if group := benchmark.macro_group:
        result["parts"] = _numbered([row["groups"].get(group) for row in rows])
    if answered:
        times = {stage: statistics.median(row["times_ms"][stage] for row in answered) for stage in STAGES}
        times["compression_and_prefill"] = statistics.median(
            row["times_ms"]["compression"] + row["times_ms"]["prefill"] for row in answered
        )
        peaks = [row["peak_memory_bytes"] for row in answered if row["peak_memory_bytes"] is not None]
        total = sum(row["total"] for row in answered)
        result |= {
            "kept_tokens": statistics.fmean(row["kept"] for row in answered),
            "video_tokens": statistics.fmean(row["total"] for row in answered),
            "kept_share": sum(row["kept"] for row in answered) / total if total else None,
            "median_ms": {name: round(value, 4) for name, value in times.items()},
            "peak_memory_bytes": max(peaks) if peaks else None,
            "seconds": round(sum(sum(row["times_ms"].values()) for row in answered) / 1000, 1),
        }
    if any(row["correct"] is None for row in answered):  # what was not answered is in the submission too
        result["submission"] = benchmark.submission({row["id"]: row.get("extracted", "") for row in rows})
    return result


def _numbered(names: Sequence[str | None]) -> str:
    """Numbers in place of names, in the order in which they come up; `-` for none."""
    numbers: dict[str, str] = {}
    return " ".join("-" if name is None else numbers.setdefault(name, str(len(numbers))) for name in names)


@dataclass
class _Worker:
    """Answers batches and logs them.

    Attributes:
        answered: keys of the cells that have answered anything: a method that then fails does not refuse the backbone.
    """

    benchmark: Benchmark
    model: CaCoVidForConditionalGeneration
    processor: ProcessorMixin
    settings: Settings
    rank: int
    answered: set[str]

    def __post_init__(self):
        self.memory = PeakMemory(self.model.device)
        self.refused: set[str] = set()

    def run(self, batch: Sequence[int], cells: list[Cell]) -> None:
        """Answer one batch for every cell; what cannot be read or answered is logged as such."""
        samples = {index: self.benchmark[index] for index in batch}
        videos: dict[int, SampledVideo] = {}
        rows: dict[int, Row] = {}
        for index, sample in samples.items():
            if sample.problem:
                rows[index] = _failed(index, sample, sample.problem)
                continue
            try:
                videos[index] = read_clip(self.processor, sample.video, self.settings.num_frames)
            except (ValueError, OSError) as error:
                rows[index] = _failed(index, sample, error)
        found: dict[str, dict[int, Row]] = {cell.key: {} for cell in cells}
        for indices in _of_one_shape(videos):
            readable, inputs = self._prepare(indices, samples, videos, rows)
            if not readable:
                continue
            shared = _Shared(self.model, inputs)
            for cell in cells:
                if cell.key not in self.refused:
                    found[cell.key] |= self._answer(cell, readable, samples, videos, shared)
        for cell in cells:
            if cell.key not in self.refused:
                cell.log.append([(rows | found[cell.key])[index] for index in batch], self.rank)

    def _prepare(
        self, indices: list[int], samples: dict[int, Sample], videos: dict[int, SampledVideo], rows: dict[int, Row]
    ) -> tuple[list[int], Any]:
        """Return the samples that the processor takes, and their inputs; the others go to `rows`."""
        try:
            return indices, prepare(
                self.model, self.processor, [[user_message(samples[index].prompt, videos[index])] for index in indices]
            )
        except (ValueError, OSError) as error:
            if len(indices) == 1:
                rows[indices[0]] = _failed(indices[0], samples[indices[0]], error)
                return [], None
            taken = [index for index in indices if self._prepare([index], samples, videos, rows)[0]]
            if len(taken) == len(indices):
                raise  # not one of them is at fault
        return self._prepare(taken, samples, videos, rows) if taken else ([], None)

    def _answer(
        self,
        cell: Cell,
        indices: list[int],
        samples: dict[int, Sample],
        videos: dict[int, SampledVideo],
        shared: "_Shared",
    ) -> dict[int, Row]:
        """Return a cell's rows of prepared samples, asked one by one if they cannot be asked together.

        A method whose first sample fails does not serve this backbone: it is refused, and the others go on. One that needs more memory than there is
        fails on that sample alone.
        """
        by_pixels = cell.retention_ratio == 1 or cell.method.reads_tower
        rows: dict[int, Row] = {}
        failure: ValueError | torch.OutOfMemoryError | None = None
        try:
            inputs, vision_ms = (shared.inputs, 0.0) if by_pixels else shared.encoded()
            self.memory.reset()
            responses = respond(
                self.model,
                self.processor,
                inputs,
                cell.method,
                cell.retention_ratio,
                cell.entry["generation"]["max_new_tokens"],
            )
        except (ValueError, torch.OutOfMemoryError) as error:
            # The frames of its trace hold the tensors of the call.
            failure = (
                error if cell.retention_ratio == 1 and isinstance(error, ValueError) else error.with_traceback(None)
            )
        if failure is not None and len(indices) > 1:
            for index in indices:
                one, inputs = self._prepare([index], samples, videos, rows)
                if one and cell.key not in self.refused:
                    rows |= self._answer(cell, one, samples, videos, _Shared(self.model, inputs))
            return rows
        if failure is not None:
            if cell.key in self.answered or isinstance(failure, torch.OutOfMemoryError):
                return {indices[0]: _failed(indices[0], samples[indices[0]], failure)}
            if cell.retention_ratio == 1:
                raise failure
            self.refused.add(cell.key)
            cell.log.append([{"index": indices[0], "refused": " ".join(str(failure).split())}], self.rank)
            return {}
        self.answered.add(cell.key)
        peak = self.memory.read()
        for index, response in zip(indices, responses, strict=True):
            times = {"decode": 1000 * videos[index].seconds, **response.times_ms}
            times["vision"] += vision_ms
            rows[index] = self._row(index, samples[index], response, times, peak)
        return rows

    def _row(self, index: int, sample: Sample, response: Response, times: dict[str, float], peak: int | None) -> Row:
        extracted = self.benchmark.extract(response.text, sample)
        return {
            **_about(index, sample),
            "response": response.text,
            "extracted": extracted,
            "answer": sample.answer,
            "correct": None if sample.answer is None else extracted == sample.answer,
            "kept": response.kept,
            "total": response.total,
            "times_ms": {stage: round(times[stage], 4) for stage in STAGES},
            "peak_memory_bytes": peak,
        }


@dataclass
class _Shared:
    """Inputs of a batch, whose videos go through the vision tower once for all cells that can share that."""

    model: CaCoVidForConditionalGeneration
    inputs: Any
    _encoded: tuple[dict[str, Any], float] | None = None

    def encoded(self) -> tuple[dict[str, Any], float]:
        """See `answering.with_encoded_videos`."""
        if self._encoded is None:
            self._encoded = with_encoded_videos(self.model, self.inputs)
        return self._encoded


def _failed(index: int, sample: Sample, error: Exception | str) -> Row:
    return {**_about(index, sample), "error": one_line(error)}


def _about(index: int, sample: Sample) -> Row:
    return {"index": index, "id": sample.id, "video_id": sample.video_id, "groups": sample.groups}


def _of_one_shape(videos: dict[int, SampledVideo]) -> list[list[int]]:
    """Return indices grouped by the shape of their frames, which a batch must share."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, video in videos.items():
        shapes.setdefault(video.frames.shape, []).append(index)
    return list(shapes.values())


def fingerprint(module: nn.Module) -> str:
    """Return a hash of a module's weights: names, shapes, dtypes and up to 1,024 evenly spaced elements of each, so that it costs little at any size
    and training changes it.
    """
    digest = hashlib.sha256()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            flat = tensor.detach().flatten()
            last = flat.numel() - 1
            # In single precision, as results of former versions have it, the last place of a large tensor is rounded up, beyond its end.
            places = torch.linspace(0, last, min(1024, flat.numel())).long().clamp(max=last)
            chosen = flat[places.to(flat.device)]
            digest.update(chosen.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
