"""What a user of transformers writes to ask about a video; not the package's own way of doing it."""

import os

CHAT = dict(tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)


def user(text, *videos):
    """A message about videos, each a path or frames `(T, H, W, 3)`."""
    kinds = ["path" if isinstance(video, (str, os.PathLike)) else "video" for video in videos]
    parts = [
        {"type": "video", kind: str(video) if kind == "path" else video}
        for kind, video in zip(kinds, videos, strict=True)
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def chat_inputs(processor, text, *videos, **processor_kwargs):
    """The processor's inputs of one such message, to be answered."""
    return processor.apply_chat_template([user(text, *videos)], **CHAT, processor_kwargs=processor_kwargs)
