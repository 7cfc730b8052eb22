"""Words around frames where they stand in the messages of published chat templates, a token for every character: what each frame has, and what is the question.

The templates of Qwen, GLM and Gemma 4 were compared with public copies of the published ones, those of VideoLLaMA3 and MiniCPM-V were not. So each is also tried with other
words in front of the video. InternVL and SmolVLM, whose processors have more of their own, are in `test_tile_processors.py`.
"""

import pytest
from helpers.chats import CHAT, user
from helpers.media import write_video
from helpers.models import wrapped
from helpers.processors import processor_of_characters

from cacovid_hf import with_video_reader

QWEN = "<|im_start|>user\n<|vision_start|>VIDEO<|vision_end|>TEXT<|im_end|>\n<|im_start|>assistant: "
GLM = "[gMASK]<sop><|user|>\n<|begin_of_video|>VIDEO<|end_of_video|>TEXT<|assistant|>: "
# How a message is written; which words its frames have, of a clip of twelve seconds; what is left as the question.
QWEN_WORDS = [f"<{time} seconds><|vision_start|><|vision_end|>" for time in ("0.8", "3.8", "7.2", "10.5")]
QWEN_TEXT = QWEN.replace("VIDEO", "").replace("TEXT", "When?")
GLM_MARKS, GLM_TEXT = "<|begin_of_image|><|end_of_image|>", GLM.replace("VIDEO", "").replace("TEXT", "When?")
MESSAGES = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), (QWEN, QWEN_WORDS, QWEN_TEXT)),
    **{family: (GLM, [f"{GLM_MARKS}{time}" for time in (0, 3, 6, 9)], GLM_TEXT) for family in ("glm4v", "glm4v_moe")},
    "glm46v": (GLM, [f"{GLM_MARKS}{time} seconds" for time in ("0.0", "3.0", "6.5", "9.5")], GLM_TEXT),
    "video_llama_3": (
        "<|im_start|>user\nVIDEO\nTEXT<|im_end|>\n<|im_start|>assistant: ",
        [
            f"{',' * (n > 0)}Time {time}s:"
            for n, time in enumerate(("0.0", "1.5", "3.0", "4.5", "6.5", "8.0", "9.5", "11.5"))
        ],
        "<|im_start|>user\n\nWhen?<|im_end|>\n<|im_start|>assistant: ",
    ),
    "minicpmv4_6": (
        "<|im_start|>user\nVIDEO\nTEXT<|im_end|>\n<|im_start|>assistant\n: ",
        ["<|vision_start|><|vision_end|>"] * 8,
        "<|im_start|>user\n\nWhen?<|im_end|>\n<|im_start|>assistant\n: ",
    ),
    "gemma4": (
        "<bos><|turn>user\n\n\nVIDEO\n\nTEXT<turn|>\n<|turn>model: ",
        [
            f"{' ' * (n > 0)}00:{time:02d} <|vision_start|><|vision_end|>"
            for n, time in enumerate((0, 1, 3, 4, 6, 7, 9, 10))
        ],
        "<bos><|turn>user\n\n\n\n\nWhen?<turn|>\n<|turn>model: ",
    ),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 24, fps=2)


@pytest.mark.spread(4)
@pytest.mark.parametrize("front", ["", "Look.", "Time 3s: 00:03 0.8 seconds, <3>", "Frame 1: "])
@pytest.mark.parametrize("family", MESSAGES)
def test_words_and_the_question(family, front, clip):
    """As published, and with words in front that look like those of frames."""
    message, words, question = MESSAGES[family]
    message, question = (
        text.replace("user|>\n", f"user|>\n{front}").replace("user\n", f"user\n{front}") for text in (message, question)
    )
    assert (message != MESSAGES[family][0]) == bool(front)
    _, model = wrapped(family)
    processor = with_video_reader(processor_of_characters(family, message))
    inputs = processor.apply_chat_template([user("When?", clip)], **CHAT, num_frames=8)
    layout = model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    (span,) = layout.videos
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    found = [span.word_places[span.word_frames == frame].tolist() for frame in range(span.num_frames)]
    assert ["".join(tokens[place] for place in places) for places in found] == words
    assert "".join(tokens[place] for place in layout.text_places[0]) == question
