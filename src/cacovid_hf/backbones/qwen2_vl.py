"""Qwen2-VL: temporal patches of two frames, merged two by two."""

from .packed_patches import PackedPatchesBackbone


class Qwen2VLBackbone(PackedPatchesBackbone):
    """`Qwen2VLForConditionalGeneration`."""

    model_type = "qwen2_vl"
