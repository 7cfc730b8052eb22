"""How many placeholders each image has, by which a later turn finds its own: as every family's processor writes them, of images of two sizes."""

from itertools import accumulate, groupby

import numpy as np
import pytest
import torch
from helpers.chats import CHAT
from helpers.models import FAMILIES, Video, masked_inputs, prompt_inputs, stock_model, wrapped
from helpers.processors import tiny_processor
from PIL import Image

from cacovid_hf import with_video_reader
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.backbones.frames_as_images import FramesAsImagesBackbone

SIZES = [(112, 56), (56, 112)]
STEP = dict(do_sample=False, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)


def image(number, size=None):
    noise = np.random.default_rng(number).integers(0, 255, (*(size or SIZES[number])[::-1], 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(noise)}


def message(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "red"}]}]


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_processor_writes_them(family):
    """One prompt with both, words between them, and two prompts with one each, which some processors cut into more tiles."""
    stock, processor, known = stock_model(family), with_video_reader(tiny_processor(family)), BACKBONES[family]
    word = {"type": "text", "text": "blue"}
    for talk in ([message(image(0), word, image(1))], [message(image(0)), message(image(1))]):
        inputs = processor.apply_chat_template(talk, **CHAT, padding=True)
        lengths = known.image_lengths(stock, inputs)
        _, is_image = known.places(stock.config, inputs["input_ids"], inputs)
        runs = [len(list(run)) for found, run in groupby(is_image.flatten().tolist()) if found]
        assert len(runs) >= 2
        if isinstance(known, FramesAsImagesBackbone):  # whose tiles count one by one
            assert set(accumulate(runs)) <= set(accumulate(lengths))
        else:
            assert lengths == runs
        assert known.image_lengths(stock, prompt_inputs(stock, [[3, Video(), 4]])) == []


def joined(turns):
    """Inputs of turns of LLaVA-OneVision as those of one conversation; images of fewer tiles are padded."""
    tiles = max(turn["pixel_values"].shape[1] for turn in turns)
    padded = [
        torch.nn.functional.pad(turn["pixel_values"], (0,) * 7 + (tiles - turn["pixel_values"].shape[1],))
        for turn in turns
    ]
    names = {"input_ids": 1, "attention_mask": 1, "image_sizes": 0, "batch_num_images": 0}
    whole = {name: torch.cat([torch.as_tensor(turn[name]) for turn in turns], dim) for name, dim in names.items()}
    return {**whole, "pixel_values": torch.cat(padded)}


def test_several_images_of_one_message_are_not_cut_into_tiles():
    """LLaVA-OneVision's processor cuts an image that is alone in its message, and no other: so they stay in a later turn, behind a stock one too."""
    stock, model = wrapped("llava_onevision")
    processor = tiny_processor("llava_onevision")
    first, second = (
        dict(processor.apply_chat_template([message(*images)], **CHAT))
        for images in ([image(0, (112, 224))], [image(0), image(1)])
    )
    video = prompt_inputs(stock, [[Video(), 4]])
    second["input_ids"] = torch.cat([second["input_ids"], video["input_ids"]], dim=1)
    second["attention_mask"] = torch.ones_like(second["input_ids"])
    for ratio in (1.0, 0.25):
        ours = model.generate(**first, retention_ratio=ratio, **STEP)
        made = {"input_ids": ours.sequences, "attention_mask": torch.ones_like(ours.sequences)}
        whole = {**joined([{**first, **made}, second]), "pixel_values_videos": video["pixel_values_videos"]}
        assert torch.as_tensor(whole["batch_num_images"]).tolist() == [1, 2]
        start = ours.sequences.shape[1]
        new = {**second, "pixel_values_videos": video["pixel_values_videos"]}
        kept = model.compress(**new, retention_ratio=0.25, compressor="uniform").kept_indices + start
        kept = torch.cat([torch.arange(start)[None], kept], dim=1)
        later = model.generate(
            **whole, retention_ratio=0.25, compressor="uniform", past_key_values=ours.past_key_values, **STEP
        )
        reference = stock.generate(**masked_inputs(stock, whole, kept), **STEP)
        assert torch.equal(later.sequences, reference.sequences)
        torch.testing.assert_close(later.logits[0], reference.logits[0], atol=1e-3, rtol=1e-3)


TAKEN = {  # images per row, those that are taken, what says so to the stock code
    "all": ([1, 2], [0, 1, 2], [1, 2]),
    "alone": ([1, 1], [1], [1]),
    "one of several": ([1, 2], [2], [2]),
    "one of several behind one": ([1, 2], [0, 2], [1, 2]),
    "two of several": ([3, 1], [0, 2, 3], [2, 1]),
    "none": ([1, 2], [], None),
}


@pytest.mark.parametrize("case", TAKEN)
def test_whether_images_are_cut_stays_known(case):
    numbers, images, expected = TAKEN[case]
    inputs = {"batch_num_images": torch.tensor(numbers), "image_sizes": torch.arange(sum(numbers))}
    taken = BACKBONES["llava_onevision"].take(inputs, None, images)
    found = taken["batch_num_images"]
    assert (found if found is None else found.tolist()) == expected
    assert taken.get("image_sizes", torch.tensor([])).tolist() == images


def test_what_cannot_be_said_of_images_is_refused():
    with pytest.raises(ValueError, match="One image of several in its row, beside an image that is alone in its row"):
        BACKBONES["llava_onevision"].take({"batch_num_images": [2, 1]}, None, [1, 2])
