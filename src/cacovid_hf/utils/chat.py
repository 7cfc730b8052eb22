"""Chat messages as the processors of transformers take them."""

from collections.abc import Mapping, Sequence
from typing import Any


def user_message(text: str, *videos: Any) -> dict[str, Any]:
    """One message of a user: the videos in order, then the text.

    Args:
        text: what is asked.
        videos: decoded frames, or whatever the caller puts in their place before the template reads them.
    """
    return {
        "role": "user",
        "content": [*({"type": "video", "video": v} for v in videos), {"type": "text", "text": text}],
    }


def chat_inputs(processor: Any, conversations: Sequence[Any], processor_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return the inputs of conversations, each to be answered next, as PyTorch tensors.

    Args:
        processor: of a video language model.
        conversations: a list of messages each; or the messages of one.
        processor_kwargs: settings of the processor beside the template's, such as `video_metadata`.

    Returns:
        What the processor returns: `input_ids` `(B, L)` and the rest.
    """
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=dict(processor_kwargs or {}),
    )


def ids_of_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts that a chat template made, which may have written the special tokens already."""
    starts = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    return [tokenizer(text, add_special_tokens=not starts)["input_ids"] for text in texts]
