"""vLLM serves our checkpoints: videos compressed by the learned, question-aware policy, a ratio per request.

vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its processes. Nothing else of this package imports this room,
and modules of it that need vLLM are imported by `register` alone.
"""


def register() -> None:
    """Tell vLLM of our configs, models and video loader. It may be called more than once."""
    from .registry import register_all

    register_all()
