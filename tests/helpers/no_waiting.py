"""Run by `test_no_waiting.py` in a process of its own: what makes the host wait for a device in one `generate`, stock and ours, as JSON."""

import json
import sys

import pretended_device as pretended
import torch
from helpers.models import PROMPTS, family_of, prompt_inputs, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration


def main(family: str, policy: str, scope: str, prompt: str) -> dict:
    torch.manual_seed(0)
    stock = stock_model(family)
    options = {"policy_type": "light"} if policy == "light" else {"policy_attention": policy}
    model = CaCoVidForConditionalGeneration.from_backbone(stock, scope=scope, **options)
    inputs, own = prompt_inputs(stock, PROMPTS[prompt]), family_of(stock).own_inputs
    settings = dict(max_new_tokens=2, do_sample=False)
    expected = model.generate(**inputs, **settings, retention_ratio=0.25)
    pretended.move(model)
    found = {}
    with pretended.Watch() as watch:
        inputs = {name: pretended.to_device(value) for name, value in inputs.items()}
        seen: list[int] = []
        handles = [
            part.register_forward_pre_hook(lambda *_: seen.append(len(watch.waits)))
            for part in (model.policy, stock.get_decoder())
        ]
        for name, call in (
            ("stock", lambda: stock.generate(**{n: v for n, v in inputs.items() if n not in own}, **settings)),
            ("ours", lambda: model.generate(**inputs, **settings, retention_ratio=0.25)),
        ):
            watch.waits.clear()
            seen.clear()
            sequences = call()
            # The first of the two modules to be called comes behind vision.
            found[name] = {"all": list(watch.waits), "behind_vision": watch.waits[seen[0] :]}
        for handle in handles:
            handle.remove()
    found["same_tokens"] = torch.equal(sequences.data_on_cpu, expected)
    return found


if __name__ == "__main__":
    print(json.dumps([main(*case.split(",")) for case in sys.argv[1:]]))
