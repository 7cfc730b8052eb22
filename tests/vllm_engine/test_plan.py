"""What the front end works out before any video is seen: positions, places, what a request asks for. No vLLM needed."""

import json
import math

import pytest
import torch
import transformers
from helpers.families.base import VIDEO as VIDEO_ID
from helpers.models import Image, Video, prompt_inputs, stock_model
from packaging.version import Version

from cacovid_hf.backbones import BACKBONES
from cacovid_hf.compressors import COMPRESSORS
from cacovid_hf.configuration import CaCoVidConfig
from cacovid_hf.policies.settings import PolicySettings
from cacovid_hf.tiny import model_path
from cacovid_hf.vllm.config import ARCHITECTURES, ServedConfig, ServerSettings, give_rows, policy_settings, without_rows
from cacovid_hf.vllm.embeddings import checked_embeddings
from cacovid_hf.vllm.layout import plan_prompt
from cacovid_hf.vllm.marks import COLUMNS, marked, write_positions
from cacovid_hf.vllm.memory import ByteBounded, total_bytes
from cacovid_hf.vllm.methods import SERVED, check_served
from cacovid_hf.vllm.orders import VideoOrder, check_room, key_of, orders_of
from cacovid_hf.vllm.positions import check_times, flat_item, grid_item
from cacovid_hf.vllm.requests import Asked, asked_of, check_kwargs, check_ours_alone, check_prompt

PLACEHOLDERS = {110: "image", 111: "video"}
POLICY = PolicySettings()


def test_the_two_rules_of_positions_behind_a_video():
    """Two seconds a step at two units a second: times 0, 4, 8; a frame of 2 x 3."""
    ours = grid_item("video", (3, 2, 3), 2.0, 2.0, "transformers")
    theirs = grid_item("video", (3, 2, 3), 2.0, 2.0, "vllm")
    assert ours.relative.tolist() == [
        [0] * 6 + [4] * 6 + [8] * 6,
        [0, 0, 0, 1, 1, 1] * 3,
        [0, 1, 2, 0, 1, 2] * 3,
    ]
    assert torch.equal(ours.relative, theirs.relative)
    assert (ours.advance, theirs.advance) == (3, 9)
    # A picture has no time, and the rules agree on it.
    assert {grid_item("image", (1, 2, 3), 2.0, 2.0, rule).advance for rule in ("transformers", "vllm")} == {3}


def test_times_for_which_the_model_has_no_positions():
    """A thousand positions, two a second: 500 s; four steps are three of their distances."""
    grids = torch.tensor([[4, 8, 8], [1, 8, 8]])
    for rule in ("transformers", "vllm"):
        check_times(grids, torch.tensor([166.0, 1e30]), 2.0, 1000, rule)
        for seconds in (167.0, 1e30, math.inf, math.nan, -1.0):
            for order in ([0, 1], [1, 0]):
                with pytest.raises(
                    ValueError, match="s by the times given, and the model has positions for 500 s: give"
                ):
                    check_times(grids[order], torch.tensor([seconds, 1.0])[order], 2.0, 1000, rule)


def test_times_of_several_videos():
    """By vLLM's rule each begins where the one before it ended, so that many of them reach as far as one of all their seconds."""
    grids, seconds = torch.tensor([[4, 8, 8]] * 3), torch.tensor([60.0, 50.0, 56.0])
    check_times(grids, seconds, 2.0, 1000, "vllm")
    with pytest.raises(ValueError, match="The 3 videos last 501 s by the times given"):
        check_times(grids, seconds + torch.tensor([0.0, 0.0, 1.0]), 2.0, 1000, "vllm")
    check_times(grids, torch.tensor([166.0] * 3), 2.0, 1000, "transformers")
    ends = [
        sum(grid_item("video", (4, 2, 2), 166.0, 2.0, rule).advance for _ in range(3))
        for rule in ("transformers", "vllm")
    ]
    assert ends[0] < 1000 < ends[1]


# Older versions take seconds as whole numbers; the extra `vllm` leaves them out.
HALF = 0.5 if Version(transformers.__version__) >= Version("5.19") else 0.0


@pytest.mark.parametrize(
    "rows", [[[3, Video(4, 2, 3, 1 + HALF), 6]], [[2, Image(), 2, Video(3, 3, 2, 2 + HALF / 5), 1, Video(2), 5]]]
)
def test_positions_are_those_of_transformers(rows):
    model = stock_model("qwen2_5_vl")
    inputs = prompt_inputs(model, rows)
    names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    expected, _ = model.model.get_rope_index(inputs["input_ids"], **{name: inputs.get(name) for name in names})
    items = []
    seconds = iter(inputs["second_per_grid_ts"])
    grids = {"image": iter(inputs.get("image_grid_thw", ())), "video": iter(inputs["video_grid_thw"])}
    for part in rows[0]:
        if not isinstance(part, int):
            modality = "image" if isinstance(part, Image) else "video"
            t, h, w = next(grids[modality]).tolist()
            time = next(seconds) if modality == "video" else 1.0
            items.append(grid_item(modality, (t, h // 2, w // 2), time, 2, "transformers"))
    ids = inputs["input_ids"][0].tolist()
    prompt = [token for place, token in enumerate(ids) if not (token in PLACEHOLDERS and ids[place - 1] == token)]
    plan = plan_prompt(prompt, PLACEHOLDERS, items, [item.length for item in items])
    is_text = torch.tensor([token not in PLACEHOLDERS for token in ids])
    assert torch.equal(plan.text_positions.expand(3, -1), expected[:, 0, is_text])
    media = torch.cat([item.relative + start for item, start in zip(items, plan.starts, strict=True)], dim=1)
    assert torch.equal(media, expected[:, 0, ~is_text])


def test_places_and_positions_of_a_compressed_prompt():
    """Words 7 8, a picture of 4 tokens, word 9, a video of 6 tokens and a newline of which 3 and the newline stay, word 7."""
    items = [flat_item("image", (1, 1, 4)), flat_item("video", (3, 1, 2), trailing=1)]
    plan = plan_prompt([7, 8, 110, 9, 111, 7], PLACEHOLDERS, items, [4, 4])
    assert plan.text_ids.tolist() == [7, 8, 9, 7]
    assert plan.text_positions.tolist() == [0, 1, 6, 14]
    assert (plan.starts, plan.places, plan.text_before) == ([2, 7], [2, 7], [2, 3])


@pytest.mark.parametrize("prompt", [[7], [111, 7], [110, 111, 110]])
def test_placeholders_that_do_not_match(prompt):
    items = [flat_item("image", (1, 1, 4)), flat_item("video", (3, 1, 2))]
    with pytest.raises(ValueError, match="one placeholder per image and video"):
        plan_prompt(prompt, PLACEHOLDERS, items, [4, 6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_marks_are_exact_in_every_dtype(dtype):
    """Positions that half precision cannot hold are written where they belong, and others stay."""
    embeds = torch.randn(2, 5, dtype=dtype)
    places, own = torch.tensor([3, 5]), torch.tensor([[257, 70_001], [65_535, 2], [16_777_215, 4095]])
    positions = torch.arange(7).repeat(3, 1)
    left, plain = write_positions(positions, [marked(embeds, places, own), marked(embeds)])
    assert torch.equal(left, embeds)
    assert torch.equal(plain, embeds)
    assert positions.tolist() == [
        [0, 1, 2, 257, 4, 70_001, 6],
        [0, 1, 2, 65_535, 4, 2, 6],
        [0, 1, 2, 16_777_215, 4, 4095, 6],
    ]


def test_marks_of_a_part_of_a_video():
    """A chunk of a prefill brings some of a video's tokens; only their positions are written."""
    whole = marked(torch.zeros(3, 2), torch.tensor([1, 2, 3]), torch.tensor([[9, 8, 7]] * 3))
    assert whole.shape == (3, 2 + COLUMNS)
    positions = torch.zeros(3, 4, dtype=torch.long)
    write_positions(positions, [whole[1:2]])
    assert positions[0].tolist() == [0, 0, 8, 0]


@pytest.mark.parametrize("ratio", [0.3, 0.07, 1 / 3, 1.0, 1e-9])
def test_orders_bring_the_ratio_exactly(ratio):
    order = VideoOrder(17, 4, 9, 3, 2, 1, ratio, key_of("a video"))
    assert VideoOrder.unpacked(order.packed()) == order
    assert key_of("a video") != key_of("another")


def test_orders_of_a_prompt():
    """Word 7, a video of 6 tokens at a half, a picture of 4, word 8, a video of 4 tokens whole, word 9; a newline stays behind each video."""
    digests = (("image", ("p",)), ("video", ("a", "b")))
    asked = Asked("divprune", (0.5, 1.0), (7, 111, 110, 8, 111, 9), digests)
    items = {
        "image": [flat_item("image", (1, 1, 4))],
        "video": [flat_item("video", (3, 1, 2), trailing=1), flat_item("video", (2, 1, 2), trailing=1)],
    }
    orders, plan = orders_of(asked, PLACEHOLDERS, items)
    method = SERVED.index("divprune")
    assert orders == [
        VideoOrder(1, 1, 4, 7, 1, method, 0.5, key_of("a")),
        VideoOrder(13, 10, 5, 5, 2, method, 1.0, key_of("b")),
    ]
    assert plan.text_positions.tolist() == [0, 12, 18]
    with pytest.raises(ValueError, match="one placeholder per image and video"):
        orders_of(asked, PLACEHOLDERS, {**items, "image": []})


def test_a_prompt_has_no_more_positions_than_the_model():
    """The last video starts at 13 and takes 5, of which one token stays."""
    orders = [VideoOrder(start, 0, 1, advance, 0, 1, 0.1, key_of("a")) for start, advance in ((0, 12), (13, 5))]
    check_room(orders, 18)
    with pytest.raises(ValueError, match="has 18 positions up to the end of its last video, and the model has 17"):
        check_room(orders, 17)


def test_the_oldest_use_is_forgotten_first():
    memory: ByteBounded[torch.Tensor] = ByteBounded(24, total_bytes)
    small = torch.zeros(2)
    memory.put("a", small)
    memory.put("b", small)
    memory.put("c", small)
    assert memory.get("a") is small
    memory.put("d", small)
    assert [memory.get(key) is None for key in "abcd"] == [False, True, False, False]
    memory.put("too large", torch.zeros(7))
    assert memory.get("too large") is None
    memory.put("e", torch.zeros(6))
    assert len(memory) == 1
    assert total_bytes({"x": [small, (small, 3)], "y": small}) == 24


def test_served_methods_read_features_alone():
    assert SERVED[0] == "cacovid"
    assert set(SERVED) >= {"cacovid", "divprune", "vidcom2", "uniform", "simplecluster"}
    refused = {"attention", "marc", "fastv", "fastvid", "flashvid", "framefusion", "visionzip"}
    assert refused == refused & set(COMPRESSORS)
    assert not refused & set(SERVED)
    for name in refused:
        with pytest.raises(ValueError, match="does not show more to a plugin"):
            check_served(name, has_policy=True)
    with pytest.raises(ValueError, match="is unknown"):
        check_served("divprun", has_policy=True)
    with pytest.raises(ValueError, match="this checkpoint has none"):
        check_served("cacovid", has_policy=False)


def test_what_a_request_asks_for():
    server = {"retention_ratio": 0.25, "compressor": "uniform"}
    assert asked_of({}, server, POLICY, 2) == Asked("uniform", (0.25, 0.25))
    assert asked_of({"retention_ratio": [0.5, 1]}, server, POLICY, 2) == Asked("uniform", (0.5, 1.0))
    assert asked_of({"compressor": "cacovid"}, server, POLICY, 1) == Asked("cacovid", (0.25,))
    assert asked_of({"retention_ratio": 0.5}, {}, POLICY, 1) == Asked("cacovid", (0.5,))
    assert asked_of({"retention_ratio": 1.0}, server, POLICY, 2) is None
    assert asked_of({}, server, POLICY, 0) is None
    assert asked_of({}, {}, PolicySettings(retention_ratio=0.1), 1) == Asked("cacovid", (0.1,))
    assert asked_of({}, {}, None, 1) is None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"retention_ratio": 0}, "outside"),
        ({"retention_ratio": 2}, "outside"),
        ({"retention_ratio": "x"}, "not a number"),
        ({"retention_ratio": "auto"}, "counts tokens before it sees the video"),
        ({"retention_ratio": [0.1, 0.2]}, "2 values"),
        ({"retention_ratio": 0.5, "compressor": "fastv"}, "does not show"),
        ({"compressor": "nothing"}, "is unknown"),
    ],
)
def test_what_a_request_may_not_ask_for(request_, said):
    with pytest.raises(ValueError, match=said):
        asked_of(request_, {}, POLICY, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retention_rato": 0.1}, "did you mean retention_ratio"),
        ({"Retention-Ratio": 0.1}, "did you mean retention_ratio"),
        ({"compression": "divprune"}, "did you mean compressor"),
        ({"videos_kwargs": {"retention_ratio": 0.1}}, "beside videos_kwargs"),
        ({"videos_kwargs": {"compressors": "divprune"}}, "videos_kwargs has 'compressors': did you mean compressor"),
        ({"videos_kwargs": {"cacovid": 1}}, "the plugin's own"),
        ({"cacovid_orders": 1}, "the plugin's own"),
        ({"videos_kwargs": "x"}, "is not an object"),
    ],
)
def test_settings_in_the_wrong_place(given, said):
    with pytest.raises(ValueError, match=said):
        check_kwargs(given)


def test_settings_of_processors_are_let_through():
    check_kwargs({"retention_ratio": 0.1, "compressor": "uniform", "num_frames": 3, "size": {}, "aspect_ratio": 1})
    check_kwargs({"videos_kwargs": {"size": {}, "processor": 1, "do_rescale": True}})
    check_kwargs({"videos_kwargs": None})


@pytest.mark.parametrize("other", [{"size": {"height": 42}}, {"do_resize": False}, {"videos_kwargs": {}}, {"": 1}])
def test_settings_of_processors_are_none_of_a_requests(other):
    """A size that the vision tower does not take would end the engine, for everybody."""
    check_ours_alone({"retention_ratio": 0.1, "compressor": "uniform"})
    name = repr(next(iter(other)))
    with pytest.raises(ValueError, match=f"mm_processor_kwargs has {name}, and a request may give retention_ratio and"):
        check_ours_alone({"retention_ratio": 0.1, **other})


TWO_VIDEOS = {
    "video_embeds": torch.zeros(10, 8),
    "video_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]]),
    "second_per_grid_ts": [1.0, 0.5],
}


def test_embeddings_of_videos_are_handed_on():
    found = checked_embeddings(TWO_VIDEOS, 4, 8)
    assert found["second_per_grid_ts"].tolist() == [1.0, 0.5]
    assert checked_embeddings({name: TWO_VIDEOS[name] for name in list(TWO_VIDEOS)[:2]}, 4, None).keys() == {
        "video_embeds",
        "video_grid_thw",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video_embeds": torch.zeros(9, 8)}, r"\(9, 8\): by its grids it is \(10, 8\)"),
        ({"video_embeds": torch.zeros(10, 4)}, r"\(10, 4\): by its grids it is \(10, 8\)"),
        ({"video_embeds": torch.zeros(10)}, "by its grids"),
        ({"video_embeds": torch.zeros(10, 8, dtype=torch.long)}, "floating-point"),
        ({"video_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 5]])}, "by its grids"),
        ({"video_grid_thw": torch.tensor([[1, 4, 4], [-1, -4, 6]])}, "below 1"),
        ({"video_grid_thw": torch.tensor([1, 4, 10])}, "has shape"),
        ({"second_per_grid_ts": [1.0]}, "one number per video"),
        ({"second_per_grid_ts": [1.0, float("nan")]}, "one number per video"),
        ({"second_per_grid_ts": [1.0, -1.0]}, "one number per video"),
        ({"second_per_grid_ts": "x"}, "holds no numbers"),
        ({"video_embeds": None}, "holds no numbers"),
        ({"seconds": 1}, "has second_per_grid_ts, seconds, video_embeds, video_grid_thw: give"),
    ],
)
def test_embeddings_that_do_not_fit(change, said):
    with pytest.raises(ValueError, match=said):
        checked_embeddings({**TWO_VIDEOS, **change}, 4, 8)


def test_a_stock_checkpoint_has_no_policy():
    with pytest.raises(ValueError, match="this checkpoint has none"):
        asked_of({"retention_ratio": 0.5}, {}, None, 1)
    assert asked_of({"retention_ratio": 0.5, "compressor": "divprune"}, {}, None, 1) == Asked("divprune", (0.5,))


def test_prompts_that_cannot_be_compressed():
    asked, blind = Asked("cacovid", (0.5,)), Asked("divprune", (0.5,))
    with pytest.raises(ValueError, match="ends inside a video"):
        check_prompt([7, 111], PLACEHOLDERS, blind, POLICY)
    check_prompt([111, 110], PLACEHOLDERS, blind, POLICY)
    with pytest.raises(ValueError, match="no text"):
        check_prompt([111, 110], PLACEHOLDERS, asked, POLICY)
    causal = PolicySettings(policy_attention="causal")
    check_prompt([7, 111, 7], PLACEHOLDERS, asked, causal)
    with pytest.raises(ValueError, match="2 images and videos"):
        check_prompt([7, 111, 110, 7], PLACEHOLDERS, asked, causal)
    check_prompt([7, 111, 110, 7], PLACEHOLDERS, asked, POLICY)


def test_identity_of_a_prompt_holds_what_its_selection_depends_on():
    def identity(method="cacovid", ratio=0.5, prompt=(7, 111, 8), digest="a"):
        return Asked(method, (ratio,), prompt, (("video", (digest,)),)).identity(VIDEO_ID)

    assert identity() == identity()
    changed = [identity(method="uniform"), identity(ratio=0.4), identity(prompt=(7, 111, 9)), identity(digest="b")]
    assert len({identity(), *changed}) == 5
    assert identity("uniform") != identity("divprune")
    # What stands behind the video says nothing to a method that is blind to it; what stands before moves it.
    assert identity("uniform", prompt=(7, 111, 9)) == identity("uniform", prompt=(7, 111, 8))
    assert identity("uniform", prompt=(6, 111, 8)) != identity("uniform")


def test_vllm_sees_the_backbone():
    values = json.loads((model_path() / "config.json").read_text())
    config, _ = ServedConfig.from_dict(values, name_or_path="a/b", return_unused_kwargs=True)
    stock = CaCoVidConfig.from_dict(values)
    assert type(config) is type(stock.backbone_config)
    assert config.architectures == ["CaCoVidLlavaOnevisionForConditionalGeneration"]
    assert (config.dtype, config._name_or_path) == (stock.dtype, "a/b")
    assert policy_settings(config) == PolicySettings(contribution_share=1.0, scope="tokens")
    assert config.cacovid["includes_backbone"] is True
    assert ServerSettings.of(config) == ServerSettings()
    assert policy_settings(stock.backbone_config) is None


def test_three_equal_rows_are_one():
    """Heads of 32 turn 16 frequencies, whichever row each of them reads."""
    config = CaCoVidConfig.from_pretrained(model_path()).backbone_config
    plain = dict(config.get_text_config().rope_parameters)
    give_rows(config.get_text_config())
    assert config.get_text_config().rope_parameters == {**plain, "mrope_section": [6, 5, 5]}
    assert without_rows(config).get_text_config().rope_parameters == plain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unfinished_save": ".saving-" + "0" * 32}, "was not finished"),
        ({"format_version": 99}, "format_version=99"),
        ({"scope": "nowhere"}, "scope='nowhere'"),
        *[
            (
                {"backbone_config": {"model_type": family}},
                f"'{family}' is not served by vLLM: use one of .* or `cacovid serve`",
            )
            for family in sorted({*BACKBONES} - {*ARCHITECTURES})
        ],
    ],
)
def test_checkpoints_that_are_not_served(change, said):
    values = json.loads((model_path() / "config.json").read_text())
    with pytest.raises(ValueError, match=said):
        ServedConfig.from_dict({**values, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"positions": "theirs"},
        {"request_sizes": 1},
        {"tower_cache_gb": -1},
        {"tower_cache_gb": True},
        {"pixel_cache_gb": "2"},
    ],
)
def test_settings_of_a_server_that_make_no_sense(change):
    with pytest.raises(ValueError, match=f"cacovid_{next(iter(change))}"):
        ServerSettings(**change)
