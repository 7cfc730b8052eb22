"""Saves of one checkpoint over another, in processes that end by SIGKILL."""

import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager

import pytest
import torch
from helpers.models import stock_model

from cacovid_hf import CaCoVidForConditionalGeneration

RATIOS = {"old": 0.25, "new": 0.5}


def model(version):
    """Another policy, another backbone and another config for each of the two versions."""
    torch.set_num_threads(1)
    seed = list(RATIOS).index(version)
    stock = stock_model("llava_onevision", seed=seed)
    made = CaCoVidForConditionalGeneration.from_backbone(
        stock, base_model_name_or_path="some/id", retention_ratio=RATIOS[version]
    )
    return made


def parts(folder, include_backbone, versions):
    """Which version the policy, the config and the backbone of a checkpoint are of."""
    given = {} if include_backbone else {"backbone": versions["old"].backbone}
    loaded = CaCoVidForConditionalGeneration.from_pretrained(folder, **given)
    found = {version for version, ratio in RATIOS.items() if loaded.config.retention_ratio == ratio}
    modules = ("policy", "backbone") if include_backbone else ("policy",)
    for module in modules:
        weights = getattr(loaded, module).state_dict()
        found |= {
            version
            for version in RATIOS
            if all(torch.equal(weights[k], w) for k, w in getattr(versions[version], module).state_dict().items())
        } or {f"broken {module}"}
    return found


def save_until(folder, include_backbone, rename, after, ready=None):
    """Save the new version, and end right before or right after the `rename`-th rename (from 1; None: never)."""
    made = model("new")
    seen = 0
    real = os.replace

    def replace(source, target):
        nonlocal seen
        seen += 1
        if seen == rename and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if seen == rename and after:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = os.rename = replace
    if ready is not None:
        ready.set()
    made.save_pretrained(folder, include_backbone=include_backbone)


@contextmanager
def clean_processes():
    """A context whose processes are forks of one that has imported all there is and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.killed_saves"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield context
