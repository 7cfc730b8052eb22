"""Images and videos given as what the vision tower made of them."""

from typing import Any

import torch
from in_engine.cases import Case, Clip, Picture, Text
from in_engine.reference import Reference

QUESTION = Text(2, 12)
VIDEOS: list[Case] = [
    Case((Text(1, 20), Clip(30), QUESTION), 0.25),
    Case((Text(1, 20), Clip(30), Text(3, 9)), 0.1),
    Case((Text(1, 20), Clip(30), QUESTION), 1.0),
    Case((Text(1, 20), Clip(30, fps=0.25), QUESTION), 0.25),  # the same embeddings at other times
    Case((Text(1, 20), Clip(30, fps=0.25), QUESTION), 1.0),
    Case((Text(6, 3), Clip(30), Text(7, 2), Clip(31, 8, 1.0), Text(8, 8)), [0.25, 0.5]),
    Case((Text(1, 20), Clip(30), QUESTION), 0.25, "divprune"),
]
PICTURES: list[Case] = [Case((Text(1, 5), Picture(30), Text(11, 2), Clip(30), QUESTION), 0.25)]


@torch.no_grad()
def as_embeddings(reference: Reference, case: Case) -> dict[str, Any]:
    """A request with the videos of Qwen, or the pictures of LLaVA, as embeddings."""
    inputs, backbone = reference.inputs(case), reference.model.backbone
    request = case.request(reference.family)
    media = request["multi_modal_data"]
    if reference.family == "qwen2_5_vl":
        grids = inputs["video_grid_thw"]
        made = backbone.get_video_features(inputs["pixel_values_videos"], video_grid_thw=grids).pooler_output
        seconds = inputs["second_per_grid_ts"]
        media["video"] = {"video_embeds": torch.cat(made), "video_grid_thw": grids, "second_per_grid_ts": seconds}
    else:
        made = backbone.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).pooler_output
        media["image"] = list(made)
    return request


def cases_of(family: str) -> list[Case]:
    """What the family takes as embeddings."""
    return VIDEOS if family == "qwen2_5_vl" else PICTURES


def endless(reference: Reference) -> list[dict[str, Any]]:
    """Requests at 25 % and at 1.0 whose embeddings come with times for which the model has no positions."""
    requests = [as_embeddings(reference, case) for case in (VIDEOS[0], VIDEOS[2])]
    for request in requests:
        request["multi_modal_data"]["video"]["second_per_grid_ts"] = torch.tensor([1e9])
    return requests


def refused(family: str) -> dict[str, Any]:
    """A request whose embeddings cannot be served."""
    request = VIDEOS[0].request(family)
    wrong = {"video_embeds": torch.zeros(5, 128), "video_grid_thw": torch.tensor([[2, 4, 4]])}
    request["multi_modal_data"] = {"video": wrong if family == "qwen2_5_vl" else torch.zeros(1, 65, 128)}
    return request
