"""The models and videos that `serving.py` serves: a checkpoint for all servers, written to a folder."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import ARCHITECTURES, Architecture

EMBEDDED = "embedded"
SHAPES = [EMBEDDED, *(name for name, shape in ARCHITECTURES.items() if shape.model_type == "llava_onevision")]


def label(arch: str, options: argparse.Namespace) -> str:
    """What a model is called in the name of a file: its shape, and what of it is smaller than published."""
    if arch == EMBEDDED:
        return EMBEDDED
    layers = "" if options.layers is None else f"_{options.layers}layers"
    tower = "" if options.tower_layers is None else f"_{options.tower_layers}tower"
    return f"{arch}{layers}{tower}_{options.frames}frames"


def checkpoint(arch: str, options: argparse.Namespace, folder: Path, with_weights: bool) -> Path:
    """A self-contained checkpoint with its processor; without weights, vLLM makes random ones."""
    from transformers import AutoProcessor

    from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, with_video_reader
    from cacovid_hf.tiny import model_path

    if arch == EMBEDDED:
        shutil.copytree(model_path(), folder)
        stock_processor(AutoProcessor.from_pretrained(folder)).save_pretrained(folder / "backbone")
        rename_tower(folder / "backbone" / "model.safetensors")
        return folder
    shape: Architecture = ARCHITECTURES[arch]
    processor = AutoProcessor.from_pretrained(model_path())
    tokens = {"image_token_index": processor.image_token_id, "video_token_index": processor.video_token_id}
    side = shape.side
    config = shape.config(options.layers)
    if options.tower_layers is not None:
        config.vision_config.num_hidden_layers = options.tower_layers
    config.update({**tokens, "image_grid_pinpoints": [[side, side]]})
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    if with_weights:
        from transformers import AutoModelForImageTextToText

        torch.manual_seed(0)
        backbone = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, options.dtype))
        backbone.generation_config.eos_token_id = None
        model = CaCoVidForConditionalGeneration.from_backbone(backbone, policy_type=options.policy)
        model.save_pretrained(folder, include_backbone=True)
    else:
        whole = CaCoVidConfig(backbone_config=config, includes_backbone=True, policy_type=options.policy)
        whole.save_pretrained(folder)
        config.save_pretrained(folder / "backbone")
    size = {"height": side, "width": side}
    processor.image_processor.size, processor.image_processor.image_grid_pinpoints = size, [[side, side]]
    processor.video_processor.size = size
    processor.num_image_tokens = (side // shape.vision["patch_size"]) ** 2
    with_video_reader(processor).save_pretrained(folder)
    stock_processor(processor).save_pretrained(folder / "backbone")
    for place in (folder, folder / "backbone"):
        name_every_token(place / "tokenizer.json", config.text_config.vocab_size)
    return folder


def name_every_token(file: Path, count: int) -> None:
    """Give a tokenizer of words one for each id, so that a random answer is text, and its first piece can be waited for."""
    described = json.loads(file.read_text())
    words = described["model"]["vocab"]
    words |= {f"word{number}": number for number in range(len(words), count)}
    file.write_text(json.dumps(described))


def stock_processor(processor: Any) -> Any:
    """The classes that vLLM knows without this package, with the same settings."""
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    settings = processor.video_processor.to_dict()
    names = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "size", "resample")
    return LlavaOnevisionProcessor(
        image_processor=processor.image_processor,
        video_processor=LlavaOnevisionVideoProcessor(**{name: settings[name] for name in names}),
        tokenizer=processor.tokenizer,
        num_image_tokens=processor.num_image_tokens,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=processor.chat_template,
    )


def rename_tower(weights: Path) -> None:
    """Give the vision tower's weights the names that stock vLLM 0.32 knows."""
    from safetensors.torch import load_file, save_file

    new, old = "vision_tower.", "vision_tower.vision_model."
    tensors = {name if old in name else name.replace(new, old): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def frames_of(arch: str, options: argparse.Namespace) -> int:
    """Frames of a video, at one a second."""
    return 8 if arch == EMBEDDED else options.frames


def tokens_of(arch: str, frames: int) -> int:
    """Tokens of a whole video."""
    side, patch = (84, 7) if arch == EMBEDDED else (ARCHITECTURES[arch].side, ARCHITECTURES[arch].vision["patch_size"])
    return frames * (-(-(side // patch) // 2)) ** 2 + 1


def write_videos(folder: Path, seed: int, count: int, seconds: int, side: int = 96) -> list[Path]:
    """Short mp4 files, each of its own content, at one frame a second."""
    from cacovid_hf.tiny.mp4 import write_mp4

    folder.mkdir()
    paths = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        coarse = rng.integers(0, 255, (seconds, 6, 6, 3), dtype=np.uint8)
        frames = coarse.repeat(side // 6, axis=1).repeat(side // 6, axis=2)
        paths.append(folder / f"video{number}.mp4")
        write_mp4(paths[-1], frames, fps=1, hold=1)
    return paths
