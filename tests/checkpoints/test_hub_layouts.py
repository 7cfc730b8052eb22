"""Processors in the files that the models' own repositories have: settings of transformers 4, the template in a JSON file of its own."""

import json

import pytest
from helpers.chats import CHAT
from helpers.media import write_video
from helpers.models import stock_model
from helpers.processors import tiny_processor

from cacovid_hf.auto import load_processor

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# What Qwen/Qwen2.5-VL-7B-Instruct and llava-hf/llava-onevision-qwen2-7b-ov-hf say; the tokenizers are tiny ones.
FILES = {
    "qwen2_5_vl": {
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": MEAN,
            "image_std": STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    },
    "llava_onevision": {
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "LlavaOnevisionProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 384, "width": 384},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_image_tokens": 729,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "full",
        },
    },
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}VIDEO{% elif part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(params=FILES)
def folder(request, tmp_path):
    family = request.param
    stock_model(family).config.save_pretrained(tmp_path)
    tiny = tiny_processor(family)
    tiny.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["processor_class"] = FILES[family]["preprocessor_config.json"]["processor_class"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    template = TEMPLATE.replace("VIDEO", tiny.video_token).replace("IMAGE", tiny.image_token)
    for name, values in {**FILES[family], "chat_template.json": {"chat_template": template}}.items():
        (tmp_path / name).write_text(json.dumps(values, indent=2))
    return tmp_path


def test_files_of_the_hub(folder):
    """Counted by hand. Qwen: 48 x 64 pixels are 56 x 56, 4 x 4 patches, two frames a step. LLaVA: 27 x 27 places pooled to 14 x 14, one at the end."""
    processor = load_processor(folder)
    family = json.loads((folder / "config.json").read_text())["model_type"]
    clip = write_video(folder / "clip.mp4", 40, fps=10)
    part = {"type": "video", "path": str(clip), "nframes": 4}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [part, {"type": "text", "text": "what color"}]}], **CHAT
    )
    placeholders = int((inputs["input_ids"] == processor.video_token_id).sum())
    reader = processor.video_processor
    if family == "qwen2_5_vl":
        assert (reader.patch_size, reader.temporal_patch_size, reader.merge_size) == (14, 2, 2)
        assert (reader.size["shortest_edge"], reader.size["longest_edge"]) == (3136, 12845056)
        assert [*reader.image_mean, *reader.image_std] == [*MEAN, *STD]
        assert inputs["video_grid_thw"].tolist() == [[2, 4, 4]]
        assert placeholders == 2 * 4 * 4 // 4
    else:
        assert (reader.size["height"], reader.size["width"]) == (384, 384)
        assert list(reader.image_mean) == [0.5, 0.5, 0.5]
        assert inputs["pixel_values_videos"].shape == (1, 4, 3, 384, 384)
        assert placeholders == 4 * 14 * 14 + 1


def test_they_are_saved_in_the_files_of_today(folder, tmp_path):
    first = load_processor(folder)
    first.save_pretrained(folder / "again")
    again = load_processor(folder / "again", config=first)
    assert (folder / "again" / "chat_template.jinja").is_file()
    assert again.chat_template == first.chat_template
    assert again.video_processor.to_dict() == first.video_processor.to_dict()


@pytest.mark.parametrize("file", ["preprocessor_config.json", "chat_template.json"])
def test_a_damaged_one(folder, file):
    (folder / file).write_text((folder / file).read_text()[:-30])
    with pytest.raises(ValueError, match=rf"^{file} of {folder} is not readable JSON .*copy or download it again"):
        load_processor(folder)
