"""Stock processors with a tiny tokenizer, for the random models of `models.py`."""

from helpers.models import BOS, EOS, IMAGE, PAD, TEXT, VIDEO, VISION_END, VISION_START
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

TEMPLATES = {
    "llava_onevision": "{% for m in messages %}{% for c in m['content'] %}"
    "{{ '<video> ' if c['type'] == 'video' else '<image> ' if c['type'] == 'image' else c['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}answer{% endif %}",
    "qwen2_5_vl": "{% for m in messages %}{% for c in m['content'] %}"
    "{{ '<|vision_start|><video><|vision_end|> ' if c['type'] == 'video' else '<|vision_start|><image><|vision_end|> ' "
    "if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}answer{% endif %}",
}
WORDS = ["answer", "what", "color", "is", "the", "circle", "square", "red", "green", "blue"]


def tiny_processor(family: str):
    """The family's stock processor; words outside its small vocabulary are one unknown word, ids without a word decode to `wN`."""
    special = {
        "<pad>": PAD,
        "<bos>": BOS,
        "<eos>": EOS,
        "<|vision_start|>": VISION_START,
        "<|vision_end|>": VISION_END,
        "<unk>": 5,
        "<image>": IMAGE,
        "<video>": VIDEO,
    }
    free = [i for i in range(TEXT["vocab_size"]) if i not in special.values()]
    words = WORDS + [f"w{i}" for i in free[len(WORDS) :]]
    vocabulary = special | dict(zip(words, free, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )
    if family == "llava_onevision":
        size = {"height": 56, "width": 56}
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56], [56, 112]]),
            video_processor=LlavaOnevisionVideoProcessor(size=size),
            tokenizer=fast,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=TEMPLATES[family],
        )
    size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84 * 16}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=fast,
        chat_template=TEMPLATES[family],
    )
