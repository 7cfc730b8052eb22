"""Train a policy for a few steps, push it to a Hub on this machine, and load it in a fresh process with an empty cache: the same tokens.

python examples/hub_round_trip.py

The Hub is the small server of the tests; against the real one, leave it out and log in with `hf auth login`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
REPOSITORY, BACKBONE = "owner/cacovid-tiny", "owner/tiny-video-llm"

PULL = """
import json, sys, torch
torch.set_num_threads(1)
import cacovid_hf
from transformers import AutoModelForImageTextToText, AutoProcessor
from cacovid_hf.tiny import clips
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
print(json.dumps([answer for clip in clips() for answer in cacovid_answers(model, processor, clip)]))
"""
ANSWERS = '''
def cacovid_answers(model, processor, clip):
    """Ids of the answers to a clip's questions at a quarter of its tokens."""
    for question in clip.questions:
        content = [{"type": "video", "path": str(clip.path)}, {"type": "text", "text": question.text}]
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True,
            return_tensors="pt", add_generation_prompt=True)
        yield model.generate(**inputs, retention_ratio=0.25, max_new_tokens=4)[0, inputs["input_ids"].shape[1]:].tolist()
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="training steps, an even number")
    options = parser.parse_args()
    from hub_server import OWNER, LoopbackHub

    with LoopbackHub().running() as hub, tempfile.TemporaryDirectory() as folder:
        # Before huggingface_hub is imported, which reads them once.
        os.environ |= {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": OWNER,
            "HF_HOME": f"{folder}/home",
            "HF_HUB_DISABLE_XET": "1",
        }
        os.environ["HF_HUB_OFFLINE"] = "0"
        expected = train_and_push(Path(folder), options.steps)
        for name, repository in hub.repositories.items():
            print(f"{name}: commits {list(repository.titles.values())[1:]}")
        fresh = {**os.environ, "HF_HOME": f"{folder}/elsewhere"}
        run = [sys.executable, "-c", ANSWERS + PULL, REPOSITORY]
        pulled = json.loads(subprocess.run(run, env=fresh, capture_output=True, text=True, check=True).stdout)
        print(f"a fresh process with an empty cache: {len(pulled)} answers, {sum(map(len, pulled))} tokens")
        print("the same tokens" if pulled == expected else f"other tokens: {pulled} and {expected}")
        sys.exit(pulled != expected)


def train_and_push(folder: Path, steps: int) -> list[list[int]]:
    """Returns the answers of the model that was pushed."""
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from cacovid_hf import CaCoVidForConditionalGeneration
    from cacovid_hf.hub.card import CardFacts
    from cacovid_hf.tiny import clips, model_path
    from cacovid_hf.tiny.policy_training import train_policy

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(model_path())
    embedded = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    embedded.backbone.save_pretrained(folder / "backbone")
    api = HfApi()
    api.create_repo(BACKBONE)
    commit = api.upload_folder(repo_id=BACKBONE, folder_path=folder / "backbone", commit_message="Backbone")
    backbone = AutoModelForImageTextToText.from_pretrained(BACKBONE, revision=commit.oid)
    model, trainer = train_policy(
        backbone, processor, folder / "trainer", preset="ours", steps=steps, batch_size=4, seed=0
    )
    model.config.base_model_name_or_path, model.config.base_model_revision = BACKBONE, commit.oid
    print(
        f"trained: {trainer.state.global_step} steps, {sum(p.numel() for p in model.policy.parameters()):,} parameters"
    )
    facts = CardFacts(license="apache-2.0", training={"steps": steps, "preset": "ours"})
    pushed = model.push_to_hub(REPOSITORY, processor=processor, card=facts)
    print(f"pushed: commit {pushed.oid[:12]}")
    names: dict = {}
    exec(ANSWERS, names)  # the same lines that the fresh process runs
    return [answer for clip in clips() for answer in names["cacovid_answers"](model.eval(), processor, clip)]


if __name__ == "__main__":
    main()
