"""A small untrained language model in the place of SmolLM2, with the words of all questions of the laboratory."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cacovid_hf.tiny.synthetic import SHAPES, WORDS
from studies.laboratory.hard_clips import plural
from studies.laboratory.words import renamed

CLIPS = 2  # of a small laboratory
_HARD_WORDS = ("how", "many", "are", "there", "with", "none", *map(plural, SHAPES))


def write_language_model(folder: Path) -> None:
    """Write it where the laboratory looks for SmolLM2.

    Args:
        folder: of the laboratory.
    """
    specials = ("<unk>", "<begin>", "<a>", "<image>", "<b>", "<video>", "\n", "empty")
    words = dict.fromkeys([*specials, *renamed(" ".join(WORDS)).split(), *_HARD_WORDS])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("?", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder / "smollm2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=132,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "smollm2")
