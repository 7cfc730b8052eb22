"""Calls of tiny models, one whenever a line asks for it: the part of `before_after` that runs in each checkout, in a process of its own.

Reads names of calls from standard input and answers each with the CPU time of one call in ms. The first line that it writes is a JSON list of the names.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, "benchmarks")  # of the checkout that it runs in

from architectures import ARCHITECTURES, build_backbone, build_inputs

from cacovid_hf import CaCoVidForConditionalGeneration


def calls() -> dict[str, Callable[[], Any]]:
    """Of both tiny shapes: the stock model, the wrapper at ratio 1.0, and both policies at 0.25."""
    found: dict[str, Callable[[], Any]] = {}
    one = {"max_new_tokens": 1, "do_sample": False}

    def add(name: str, call: Callable[..., Any], **arguments: Any) -> None:
        found[name] = lambda: call(**arguments)

    for arch in ("tiny-llava-onevision", "tiny-qwen2.5-vl"):
        backbone: Any = build_backbone(ARCHITECTURES[arch], 2, torch.float32, torch.device("cpu"), "sdpa")
        inputs = dict(build_inputs(backbone, ARCHITECTURES[arch], 4, 14, 32, 1))
        add(f"{arch}: stock generate", backbone.generate, **inputs, **one)
        for policy in ("full", "light"):
            model = CaCoVidForConditionalGeneration.from_backbone(backbone, policy_type=policy)
            add(f"{arch}: generate at 0.25, {policy}", model.generate, **inputs, **one, retention_ratio=0.25)
            add(f"{arch}: compress at 0.25, {policy}", model.compress, **inputs, retention_ratio=0.25)
        add(f"{arch}: generate at 1.0", model.generate, **inputs, **one, retention_ratio=1.0)
    return found


@torch.no_grad()
def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    found = calls()
    gc.collect()
    gc.freeze()
    print(json.dumps(list(found)), flush=True)
    for line in sys.stdin:
        begun = time.process_time()
        found[line.strip()]()
        print(1000 * (time.process_time() - begun), flush=True)


if __name__ == "__main__":
    main()
