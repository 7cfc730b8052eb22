"""Stock processors with a tiny tokenizer, for the random models of `models.py`."""

from helpers.families.base import BOS, EOS, IMAGE, PAD, TEXT, VIDEO
from helpers.models import BY_NAME
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["answer", "what", "color", "is", "the", "circle", "square", "red", "green", "blue"]
# What a family's own class of tokenizers reads, which does not know whole words.
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def tiny_processor(family: str):
    """The family's stock processor; words outside its small vocabulary are one unknown word, ids without a word decode to `wN`."""
    marks = list(BY_NAME[family].marks)
    special = {
        "<pad>": PAD,
        "<bos>": BOS,
        "<eos>": EOS,
        **BY_NAME[family].marks,
        "<unk>": 5,
        "<image>": IMAGE,
        BY_NAME[family].video_word: VIDEO,
    }
    free = [i for i in range(TEXT["vocab_size"]) if i not in special.values()]
    known = WORDS + LETTERS
    words = known + [f"w{i}" for i in free[len(known) :]]
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
            "video_token": BY_NAME[family].video_word,
            "start_image_token": marks[0],
            "end_image_token": marks[1],
            "context_image_token": "<image>",
            "fake_image_token": marks[0],
            "global_image_token": marks[1],
            **{f"mark{number}": mark for number, mark in enumerate(marks)},
            **BY_NAME[family].special_words,
        },
    )
    return BY_NAME[family].processor(fast)
