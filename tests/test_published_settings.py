"""Settings of published checkpoints in every family's processor: they are kept, and files come out with their frames and tokens, up to an answer of a random model."""

import numpy as np
import pytest
import torch
from helpers.chats import CHAT
from helpers.media import write_video
from helpers.models import FAMILIES
from helpers.published import PUBLISHED, published_model, published_processor
from transformers import Gemma4ImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.checkpoints.stock_processor import check_settings
from cacovid_hf.processing import with_video_reader

pytestmark = pytest.mark.spread(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds of four pictures of 320 x 180 each."""
    pictures = np.random.default_rng(0).integers(0, 255, (8, 180, 320, 3), dtype=np.uint8)
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", list(pictures), fps=4)


@pytest.fixture(autouse=True)
def own_default_size(monkeypatch):
    """Stock writes `max_pixels` of one video processor into its class, where those of later tests would find it."""
    monkeypatch.setattr(Qwen2VLVideoProcessor, "size", {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768})


def test_every_family_has_its_facts():
    assert set(PUBLISHED) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_are_kept(family):
    """By our reader, whose settings a checkpoint may then hold."""
    stock = published_processor(family)
    reader = with_video_reader(stock).video_processor
    for name, value in PUBLISHED[family].video.items():
        found = reader.to_dict().get(name, value if name == "video_sampling" else None)
        assert (list(found) if isinstance(value, list) else found) == value, name
    if "smolvlm" not in family and "num_frames" not in PUBLISHED[family].video and PUBLISHED[family].seconds:
        assert reader.num_frames is None  # GLM's class has a number that its rule does not read
    check_settings(stock.video_processor.to_dict(), "settings")


@pytest.mark.parametrize("family", [family for family in FAMILIES if PUBLISHED[family].seconds])
def test_frames_of_the_familys_rule(family):
    """Those that stock code chooses by the settings of a checkpoint, and so many."""
    stock = published_processor(family).video_processor
    reader = with_video_reader(published_processor(family)).video_processor
    for seconds, count in PUBLISHED[family].seconds.items():
        metadata = VideoMetadata(total_num_frames=int(seconds * 25), fps=25.0, duration=seconds)
        theirs = stock.sample_frames(metadata=metadata, **PUBLISHED[family].rate)
        assert len(theirs) == count
        assert np.array_equal(reader.sample_frames(metadata=metadata), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_up_to_its_answer(family, clip):
    """Four frames: their tokens as published, a quarter of them kept."""
    known, model = PUBLISHED[family], CaCoVidForConditionalGeneration.from_backbone(published_model(family))
    processor = with_video_reader(published_processor(family))
    if family == "video_llama_3":
        processor.video_processor.use_token_compression = False
    part = [{"type": "video", "path": str(clip)}, {"type": "text", "text": "what color"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": part}], **CHAT, num_frames=4, fps=2)
    inputs = inputs.to(model.device, model.dtype)
    layout = model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    (span,) = layout.videos
    assert (span.num_frames, span.tokens_per_frame) == (4 // known.per_step, known.tokens)
    with torch.no_grad():
        compressed = model.compress(**inputs, retention_ratio=0.25)
        ids = model.generate(**inputs, retention_ratio=0.25, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert int(compressed.videos[0].keep.sum()) == span.num_tokens // 4
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 2


def test_images_of_gemma4():
    """Four times the tokens of a frame, by class and checkpoints."""
    settings = Gemma4ImageProcessor().to_dict()
    known = PUBLISHED["gemma4"].video
    assert settings["max_soft_tokens"] == 280
    for name in ("patch_size", "pooling_kernel_size", "image_mean", "image_std"):
        assert settings[name] == (tuple(known[name]) if isinstance(known[name], list) else known[name])
