"""Long videos: peak memory by number of frames, stock against ours, each in a process of its own; and decoding beside or before encoding.

A narrow LLaVA-OneVision: published frames (384 pixels, 14 x 14 tokens), small widths, random weights, so that 1,024 frames (200,704 video tokens) run on a
CPU. Memory of a real width differs in its factors, not in what it grows with.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from architectures import ARCHITECTURES, ROPE, SIGLIP_SO400M, Architecture, _qwen2, build_backbone
from clips import video_reader, write_clip
from record import RESULTS, command, environment, summarise, write_result

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.generation.long_video import encode_file

NARROW = Architecture(
    checkpoint="none (narrow: an eighth of SigLIP's and a quarter of the 0.5B's width)",
    model_type="llava_onevision",
    text=_qwen2(224, 1216, 4, 7, 1, 1000, ROPE),
    vision=dict(SIGLIP_SO400M, hidden_size=144, intermediate_size=288, num_hidden_layers=2, num_attention_heads=2),
    tied=True,
    side=384,
)
TEXT_BEFORE, TEXT_AFTER = 14, 32
NOTES = [
    "build: the model alone. stock: the processor's pixels of all frames, and the backbone's own generate. whole: the same pixels, ours, the tower in "
    "chunks. streamed: model.session(file), then generate: decoded, prepared and encoded in chunks.",
    "Peak memory is ru_maxrss of a process that does nothing else and begins with the imports (CUDA: torch.cuda.max_memory_allocated), from imports to the first token.",
    "Ours holds the encoded video (N x D numbers) and, while a question is asked, the embedded prompt (N x D more); everything else grows with a chunk or "
    "with the kept tokens.",
]


def make(options: argparse.Namespace) -> tuple[Any, Any]:
    """The wrapped model, and what stands for its processor."""
    architecture = ARCHITECTURES[options.arch] if options.arch else NARROW
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    backbone: Any = build_backbone(architecture, options.layers, dtype, device, "sdpa")
    with device:
        model = CaCoVidForConditionalGeneration.from_backbone(backbone)
    return model, SimpleNamespace(video_processor=video_reader(architecture), chat_template=None)


def prompt_ids(model: Any, num_tokens: int) -> torch.Tensor:
    """Random text, so many placeholders, random text."""
    text = torch.randint(5, 100, (TEXT_BEFORE + TEXT_AFTER,), generator=torch.Generator().manual_seed(0)).tolist()
    placeholders = [model.backbone.config.video_token_id] * num_tokens
    ids = [*text[:TEXT_BEFORE], *placeholders, *text[TEXT_BEFORE:]]
    return torch.tensor([ids], device=model.device)


@torch.no_grad()
def child(options: argparse.Namespace) -> dict[str, Any]:
    """One way of getting to the first token, in this process; its peak memory and times."""
    torch.set_num_threads(options.threads)
    model, processor = make(options)
    times: dict[str, float] = {}
    started = time.perf_counter()
    kept = tokens = 0
    settings: dict[str, Any] = dict(max_new_tokens=1, do_sample=False)
    if options.way == "streamed":
        reader = processor.video_processor
        how = dict(num_frames=options.frames[0], frames_per_chunk=options.frames_per_chunk)
        session = model.session(encode_file(model, reader, options.clip, **how))
        times["read_and_encode"] = time.perf_counter() - started
        tokens = len(session.encoded.features[0]) - 1
        session.generate(prompt_ids(model, tokens + 1), retention_ratio=options.ratio, **settings).tolist()
    elif options.way != "build":
        reader = processor.video_processor
        frames, metadata = reader.fetch_videos(
            str(options.clip), lambda metadata: reader.sample_frames(metadata, num_frames=options.frames[0])
        )
        pixels = reader(videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
        del frames
        pixels = pixels.to(model.device, model.dtype)
        times["read_and_prepare"] = time.perf_counter() - started
        (grid,) = model.family.video_grids(model.backbone.config, pixels)
        tokens = grid[0] * grid[1] * grid[2]
        ids = prompt_ids(model, tokens + 1)
        if options.way == "stock":
            model.backbone.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels, **settings).tolist()
        else:
            model.generate(input_ids=ids, **pixels, retention_ratio=options.ratio, **settings).tolist()
    times["total"] = time.perf_counter() - started
    if options.way in ("streamed", "whole"):
        kept = max(1, int(options.ratio * tokens + 1e-9))
    return {
        "way": options.way,
        "frames": options.frames[0] if options.way != "build" else 0,
        "retention_ratio": options.ratio if kept else None,
        "video_tokens": tokens,
        "kept_tokens": kept or tokens,
        "encoded_video_bytes": tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize,
        "peak_bytes": peak(model.device),
        "seconds": times,
    }


def peak(device: torch.device) -> int:
    """Of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process(options: argparse.Namespace, way: str, frames: int, ratio: float, clip: Path) -> dict[str, Any]:
    """`child` in a process of its own, which begins with the imports alone."""
    settings = argparse.Namespace(**{**vars(options), "way": way, "frames": [frames], "ratio": ratio, "clip": clip})
    start = "spawn" if torch.device(options.device).type == "cuda" or sys.platform == "darwin" else "fork"
    with multiprocessing.get_context(start).Pool(1) as pool:
        row = pool.apply(child, (settings,))
    print(json.dumps(row), flush=True)
    return row


def overlap(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Decoding beside and before encoding, in turn, `repeats` times each."""
    clip = folder / "large.mp4"
    height, width = options.overlap_size
    write_clip(clip, options.overlap_frames, height, width)
    model, processor = make(options)
    reader = processor.video_processor
    settings: dict[str, Any] = dict(num_frames=options.overlap_frames, frames_per_chunk=options.frames_per_chunk)
    samples: dict[str, list[float]] = {"beside": [], "in_turn": [], "decode_and_prepare_alone": []}
    encode_file(model, processor.video_processor, clip, **settings)  # warm

    def timed(name: str) -> None:
        started = time.perf_counter()
        if name == "decode_and_prepare_alone":
            for frames, metadata in reader.iter_frames(str(clip), options.frames_per_chunk, options.overlap_frames):
                reader(videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
        else:
            encode_file(model, processor.video_processor, clip, overlap=name == "beside", **settings)
        samples[name].append(time.perf_counter() - started)

    for repeat in range(options.repeats):
        names = list(samples)
        for name in names[repeat % 3 :] + names[: repeat % 3]:
            timed(name)
    medians = {name: summarise(values)["median"] for name, values in samples.items()}
    longer = max(medians["decode_and_prepare_alone"], medians["in_turn"] - medians["decode_and_prepare_alone"])
    return {
        "clip": {"frames": options.overlap_frames, "height": height, "width": width},
        "seconds": {name: summarise(values) for name, values in samples.items()},
        "speedup": medians["in_turn"] / medians["beside"],
        "speedup_if_nothing_were_shared": medians["in_turn"] / longer,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the record."""
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    architecture = ARCHITECTURES[options.arch] if options.arch else NARROW
    record: dict[str, Any] = {
        "benchmark": "long_video",
        "command": command(),
        "config": {
            **config,
            "checkpoint_shape": architecture.checkpoint,
            "text": architecture.text,
            "vision": architecture.vision,
        },
        **environment(options.commit, torch.device(options.device)),
        "notes": NOTES,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = folder / "clip.mp4"
        longest = max([*options.frames, *options.stock_frames])
        write_clip(clip, longest, 384, 384)
        rows = [in_a_process(options, "build", 1, options.ratio, clip)]
        rows += [in_a_process(options, "stock", frames, options.ratio, clip) for frames in options.stock_frames]
        rows += [in_a_process(options, "streamed", frames, options.ratio, clip) for frames in options.frames]
        rows += [in_a_process(options, "streamed", max(options.frames), ratio, clip) for ratio in options.other_ratios]
        rows += [in_a_process(options, "whole", frames, options.ratio, clip) for frames in options.stock_frames[-1:]]
        record["peak_memory"] = rows
        record["overlap"] = overlap(options, folder)
    return record


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of a run, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    llava = [name for name, architecture in ARCHITECTURES.items() if architecture.model_type == "llava_onevision"]
    parser.add_argument("--arch", choices=llava, help="a published shape instead of the narrow one")
    parser.add_argument("--layers", type=int, help="fewer language-model layers")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--stock-frames", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--ratio", type=float, default=0.05)
    parser.add_argument("--other-ratios", type=float, nargs="*", default=[0.025], help="of the longest video")
    parser.add_argument("--frames-per-chunk", type=int, default=16)
    parser.add_argument("--overlap-frames", type=int, default=64)
    parser.add_argument("--overlap-size", type=int, nargs=2, default=[720, 1280], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5, help="of the overlap")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    if min([*options.frames, *options.stock_frames, options.frames_per_chunk, options.repeats, options.threads]) < 1:
        parser.error("numbers of frames, repeats and threads must be at least 1.")
    return options


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark and return the path of its JSON."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    record = run(options)
    path = write_result(options.output, f"long_video_{options.arch or 'narrow'}", record)
    for row in record["peak_memory"]:
        print(
            f"{row['way']:>9} {row['frames']:5d} frames, {row['kept_tokens']:6d} of {row['video_tokens']:6d} tokens: "
            f"{row['peak_bytes'] / 2**20:7.0f} MiB, {row['seconds']['total']:6.1f} s"
        )
    print(f"decoding beside encoding: {record['overlap']['speedup']:.2f} times faster than in turn")
    print(path)
    return path


if __name__ == "__main__":
    main()
