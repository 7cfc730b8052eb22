"""Lets torchvision be imported where its compiled operators do not load: a CUDA build beside a CPU build of torch.

`vllm_env.sh` copies this file into an environment, and a `.pth` file there imports it when Python starts, in every process.
"""

import importlib.abc
import sys


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators whose meta versions torchvision registers on import."""

    def find_spec(self, name, path, target=None):
        """Find nothing; once, when torchvision is asked for, declare."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                for operator in ("nms", "qnms"):
                    torch.library.define(
                        f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )


sys.meta_path.insert(0, BeforeTorchvision())
