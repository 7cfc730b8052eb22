"""What vLLM knows of us once it has called `register`, which it does more than once."""

import json

from vllm import ModelRegistry
from vllm.transformers_utils.config import _CONFIG_REGISTRY

from cacovid_hf.vllm import register


def main() -> None:
    """Print each new model with its file and its parents, and the kind of config of our checkpoints."""
    stock = set(ModelRegistry.get_supported_archs())
    register()
    register()
    models = {}
    for name in sorted(set(ModelRegistry.get_supported_archs()) - stock):
        model = ModelRegistry._try_load_model_cls(name)
        models[name] = [model.__module__.rpartition(".")[2], *(parent.__name__ for parent in model.__bases__)]
    print(json.dumps({"models": models, "config": _CONFIG_REGISTRY["cacovid"].__name__}))


if __name__ == "__main__":
    main()
