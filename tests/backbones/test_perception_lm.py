"""Perception LM: its towers of timm as published, with and without a class token, and configs that do not say the size of a frame."""

import pytest
import torch
from helpers.models import BY_NAME, ONE_VIDEO, RAGGED, TEXT, prompt_inputs, wrapped
from transformers import PerceptionLMConfig, PerceptionLMForConditionalGeneration

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.backbones import BACKBONES

FAMILY = BACKBONES["perception_lm"]
# Facts: what transformers' conversion of the checkpoints writes (`convert_perception_lm_weights_to_hf.py`), by the sizes of both towers.
SAME = dict(
    img_size=[448, 448], ref_feat_shape=[32, 32], global_pool="", init_values=0.1, use_post_transformer_norm=False
)
TOWERS = {
    "1B and 3B": ("vit_pe_core_large_patch14_336", dict(depth=23, embed_dim=1024), True),
    "8B": ("vit_pe_core_gigantic_patch14_448", dict(depth=47, embed_dim=1536), False),
}


def config_of(architecture, arguments, class_token, text=TEXT):
    return PerceptionLMConfig(
        vision_config=dict(model_type="timm_wrapper", architecture=architecture, model_args=arguments),
        text_config=dict(model_type="llama", **text),
        image_token_id=110,
        video_token_id=111,
        projector_pooling_ratio=2,
        vision_use_cls_token=class_token,
    )


@pytest.mark.parametrize("checkpoint", TOWERS)
def test_a_frame_of_a_published_tower(checkpoint):
    """32 x 32 patches, pooled two by two."""
    pytest.importorskip("timm")
    architecture, arguments, class_token = TOWERS[checkpoint]
    config = config_of(architecture, {**SAME, **arguments}, class_token)
    pixels = {"pixel_values_videos": torch.empty(2, 3, 3, 448, 448, device="meta")}
    assert FAMILY.video_grids(config, pixels) == [(3, 16, 16)] * 2
    with torch.device("meta"):
        stock = PerceptionLMForConditionalGeneration(config)
    tower = FAMILY.timm_model(stock)
    assert (tower.patch_embed.num_patches, tower.num_prefix_tokens) == (32 * 32, int(class_token))
    patches = torch.arange(1024.0 + class_token)[None, :, None]
    assert FAMILY.pooled(stock, patches).shape == (1, 256, 1)
    assert float(FAMILY.pooled(stock, patches)[0, 0]) == (0 + 1 + 32 + 33) / 4 + class_token


def test_a_tower_without_a_class_token():
    """That of 8B: attention is that of timm's own maps, and the prompt is compressed and answered."""
    pytest.importorskip("timm")
    arguments = BY_NAME["perception_lm"].config(TEXT).vision_config.model_args
    stock = PerceptionLMForConditionalGeneration(config_of(TOWERS["8B"][0], arguments, False)).eval()
    BY_NAME["perception_lm"].amplify(stock)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, RAGGED)
    prompt = model.embed(**inputs, with_tower_attention=True)
    maps = iter(BY_NAME["perception_lm"].tower_maps(stock, inputs))
    for found in prompt.tower:
        for received in found.received():
            of_patches = next(maps).mean((0, 1))
            torch.testing.assert_close(received, of_patches.view(2, 2, 2, 2).mean((1, 3)).flatten())
    assert next(maps, None) is None
    ids = model.generate(**inputs, retention_ratio=0.25, compressor="visionzip", max_new_tokens=2, min_new_tokens=2)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 2


def test_frames_of_another_size():
    stock, model = wrapped("perception_lm")
    inputs = prompt_inputs(stock, ONE_VIDEO)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][..., :-14]
    with pytest.raises(ValueError, match=r"Frames of 56 x 42 pixels .* takes 56 x 56: use the processor of this model"):
        model.generate(**inputs, retention_ratio=0.5)


@pytest.mark.parametrize(
    ("architecture", "arguments", "error"),
    [
        ("vit_pe_lang_large_patch14_448", None, r"model_args=\{\} .* give them img_size"),
        ("vit_pe_lang_large", {"img_size": 56}, "'vit_pe_lang_large' does not say the size of its patches"),
    ],
)
def test_configs_that_do_not_say_the_size(architecture, arguments, error):
    config = config_of(architecture, arguments, True)
    with pytest.raises(ValueError, match=error):
        FAMILY.video_grids(config, {"pixel_values_videos": torch.zeros(1, 2, 3, 56, 56)})
