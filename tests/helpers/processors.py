"""Stock processors with a tiny tokenizer, for the random models of `models.py`."""

from helpers.families.base import BOS, EOS, IMAGE, PAD, TEXT, VIDEO
from helpers.models import BY_NAME
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["answer", "what", "color", "is", "the", "circle", "square", "red", "green", "blue"]
# What a family's own class of tokenizers reads, which does not know whole words.
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
CHARACTERS = [*map(chr, range(32, 127)), "\n"]


def tiny_processor(family: str):
    """The family's stock processor; words outside its small vocabulary are one unknown word, ids without a word decode to `wN`."""
    return BY_NAME[family].processor(_tokenizer(family, WORDS + LETTERS, pre_tokenizers.Whitespace()))


def processor_of_characters(family: str, message: str):
    """The same with a token for every character, the line break among them.

    Args:
        family: the processor's.
        message: how its chat template writes a video and a question, `VIDEO` and `TEXT`.
    """
    processor = BY_NAME[family].processor(
        _tokenizer(family, CHARACTERS, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"))
    )
    word = BY_NAME[family].video_word
    processor.chat_template = message.replace("VIDEO", word).replace("TEXT", "{{ messages[0]['content'][1]['text'] }}")
    return processor


def _tokenizer(family: str, known: list[str], splits):
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
    words = known + [f"w{i}" for i in free[len(known) :]]
    vocabulary = special | dict(zip(words, free, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splits
    return PreTrainedTokenizerFast(
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
