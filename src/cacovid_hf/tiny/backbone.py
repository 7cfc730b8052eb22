"""The stock classes of the embedded model, in its own small sizes: an untrained model and its processor."""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from .synthetic import FRAME_SIZE, WORDS

PATCH_SIZE = 7
_PAD, _BOS, _EOS, _UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_IMAGE, _VIDEO, ANSWER_TOKEN = "<image>", "<video>", "<ans>"
_VOCABULARY = {word: i for i, word in enumerate((_PAD, _BOS, _EOS, _UNK, _IMAGE, _VIDEO, ANSWER_TOKEN, *WORDS))}

# Each turn of the user's is followed by <ans>: before the assistant's answer, or as the generation prompt.
_CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}{{- '<ans>' -}}{%- endif -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for content in message['content'] if content['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
        {%- for content in message['content'] if content['type'] == 'video' -%}{{- '<video>' -}}{%- endfor -%}
        {%- for content in message['content'] if content['type'] == 'text' -%}{{- content['text'] + ' ' -}}{%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<ans>' -}}{%- endif -%}
"""


def build_model() -> LlavaOnevisionForConditionalGeneration:
    """Return the untrained model (about 563 thousand parameters), initialised from torch's current random state."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=FRAME_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(_VOCABULARY),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            pad_token_id=_VOCABULARY[_PAD],
            bos_token_id=_VOCABULARY[_BOS],
            eos_token_id=_VOCABULARY[_EOS],
        ),
        image_token_index=_VOCABULARY[_IMAGE],
        video_token_index=_VOCABULARY[_VIDEO],
        image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]],
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.pad_token_id = _VOCABULARY[_PAD]
    model.generation_config.bos_token_id = _VOCABULARY[_BOS]
    model.generation_config.eos_token_id = _VOCABULARY[_EOS]
    return model


def build_processor() -> LlavaOnevisionProcessor:
    """Return the processor: word-level tokenizer (case and punctuation ignored), image and video processors, chat template."""
    tokenizer = Tokenizer(models.WordLevel(_VOCABULARY, unk_token=_UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": FRAME_SIZE, "width": FRAME_SIZE}, image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]]
        ),
        video_processor=LlavaOnevisionVideoProcessor(size={"height": FRAME_SIZE, "width": FRAME_SIZE}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=_PAD,
            bos_token=_BOS,
            eos_token=_EOS,
            unk_token=_UNK,
            extra_special_tokens={"image_token": _IMAGE, "video_token": _VIDEO, "answer_token": ANSWER_TOKEN},
            padding_side="left",
            model_max_length=4096,
        ),
        num_image_tokens=(FRAME_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_CHAT_TEMPLATE,
    )
