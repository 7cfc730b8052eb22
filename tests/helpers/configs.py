"""What the tests of training configs share: a small config, its samples, and a stream of them."""

import json
from pathlib import Path

import torch
import yaml

from cacovid_hf.tiny import clips

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "configs"
TINY = {"function": "cacovid_hf.tiny.dataset:QuestionDataset", "num_samples": 8, "seed": 1}


def write(folder, **sections):
    samples = [
        {"problem": q.text, "solution": q.answer, "problem_type": kind, "path": clip.path.name}
        for clip in clips()
        for q, kind in zip(clip.questions, ("multiple choice", "free-form"), strict=False)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    config = {
        "policy": {"contribution_share": 1.0},
        "data": {"train": str(folder / "samples.jsonl"), "root": str(clips()[0].path.parent), "eval": TINY},
        "training": {
            "preset": "ours",
            "output_dir": str(folder / "run"),
            "policy_attention": "question",
            "num_token_rollouts": 4,
            "num_frame_rollouts": 0,
            "max_new_tokens": 2,
            "per_device_train_batch_size": 2,
            "max_steps": 8,
            "logging_steps": 2,
            "save_steps": 2,
            "eval_steps": 4,
            "eval_ratios": [0.1],
            "use_cpu": True,
        },
    }
    for name, settings in sections.items():
        config[name] = {**config.get(name, {}), **settings} if isinstance(settings, dict) else settings
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


class stream(torch.utils.data.IterableDataset):
    def __init__(self, length=3):
        self.length = length

    def __iter__(self):
        return iter([{"problem": "What?", "solution": "red", "path": clips()[0].path.name}] * self.length)
