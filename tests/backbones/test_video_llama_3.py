"""VideoLLaMA3: its processor's own compression is refused in one sentence, and its times reach the prompt of a session."""

import numpy as np
import pytest
import torch
from helpers.chats import CHAT
from helpers.media import write_video
from helpers.models import PROMPTS, prompt_inputs, tower, wrapped
from helpers.processors import tiny_processor

from cacovid_hf import with_video_reader

GREEDY = dict(max_new_tokens=4, do_sample=False)


def test_tokens_that_the_processor_dropped_are_refused(tmp_path):
    """By name, before any heavy work; at ratio 1.0 the call is the stock model's, which knows them."""
    stock, model = wrapped("video_llama_3")
    processor = with_video_reader(tiny_processor("video_llama_3"))
    processor.video_processor.use_token_compression = True
    clip = write_video(tmp_path / "clip.mp4", 9, fps=1)
    message = [{"role": "user", "content": [{"type": "video", "path": str(clip)}, {"type": "text", "text": "what"}]}]
    inputs = processor.apply_chat_template(message, **CHAT)
    mask = inputs["video_compression_mask"]
    dropped = int((~mask).sum())
    assert dropped
    assert torch.equal(model.generate(**inputs, **GREEDY), stock.generate(**inputs, **GREEDY))
    assert torch.equal(model.generate(**inputs, retention_ratio=1.0, **GREEDY), stock.generate(**inputs, **GREEDY))
    handle = tower(stock).register_forward_pre_hook(lambda *args: pytest.fail("the vision tower ran"))
    for call in (model.generate, model.compress, model, model.kept_lengths, model.session):
        with pytest.raises(ValueError, match=f"The processor dropped {dropped} video tokens of its own") as refused:
            call(**inputs, retention_ratio=0.5)
    handle.remove()
    # The remedy that the error names.
    assert "processor.video_processor.use_token_compression = False" in str(refused.value)
    processor.video_processor.use_token_compression = False
    inputs = processor.apply_chat_template(message, **CHAT)
    assert inputs["video_compression_mask"].all()
    assert int(model.compress(**inputs, retention_ratio=0.5).videos[0].keep.sum()) == len(mask) // 2


def test_a_field_that_is_missing():
    stock, model = wrapped("video_llama_3")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    del inputs["video_merge_sizes"]
    with pytest.raises(ValueError, match="video_grid_thw is given without video_merge_sizes"):
        model.generate(**inputs, retention_ratio=0.5, **GREEDY)


def test_frames_without_times_are_one_second_apart(caplog):
    """As stock code assumes of this family, and a warning says so."""
    processor = with_video_reader(tiny_processor("video_llama_3"))
    frames = np.zeros((3, 56, 56, 3), dtype=np.uint8)
    found = processor(text="<video>", videos=[frames], return_tensors="pt")
    times = processor.replace_video_token(
        {**found, "video_metadata": [processor.video_processor(frames, return_metadata=True)["video_metadata"][0]]}, 0
    )
    assert [part.split(":")[0] for part in times.split("Time ")[1:]] == ["0.0s", "1.0s", "2.0s"]
