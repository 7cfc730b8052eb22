"""How many frames a server's and a request's `media_io_kwargs` give. No vLLM needed."""

import math

import pytest

from cacovid_hf.vllm.frame_limits import FrameLimits, frames_to_plan, limits_of_request, limits_of_server

SERVER = FrameLimits(32, 1.0)


def test_limits_of_a_server():
    assert limits_of_server({}) == FrameLimits(32, math.inf)
    assert limits_of_server({"num_frames": 64, "fps": 0.5, "video_backend": "cacovid"}) == FrameLimits(64, 0.5)
    assert {limits_of_server({"fps": none}) for none in (None, -1, -1.0, math.inf)} == {FrameLimits()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_frames": -1}, "num_frames=-1 for videos: give an integer of at least 1"),
        ({"num_frames": None}, "num_frames=None"),
        ({"fps": 0}, "fps=0 for videos: give a number over 0, or -1 for no limit"),
        ({"fps": 10**400}, "fps=1000"),
        ({"frames": 8}, "'frames' for videos: give num_frames and fps alone"),
    ],
)
def test_limits_of_a_server_that_make_no_sense(given, said):
    with pytest.raises(ValueError, match=f"^media_io_kwargs has {said}"):
        limits_of_server(given)


@pytest.mark.parametrize("given", [{}, {"num_frames": 32}, {"num_frames": 1, "fps": 1}, {"fps": 5e-324}])
def test_a_request_may_lower_the_limits(given):
    assert limits_of_request(given, SERVER) == given


def test_without_a_limit_of_the_server_any_rate_will_do():
    assert limits_of_request({"fps": 1e308}, FrameLimits(8)) == {"fps": 1e308}


@pytest.mark.parametrize("count", [0, -1, 33, 10**400, 8.0, True, "8", None, [8], math.nan])
def test_numbers_of_frames_that_a_request_may_not_ask_for(count):
    with pytest.raises(ValueError, match="for videos: give an integer from 1 to 32, the server's own") as error:
        limits_of_request({"num_frames": count}, SERVER)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("rate", [0, -1, 1.5, 10**400, True, "1", None, [1], math.nan, math.inf])
def test_rates_that_a_request_may_not_ask_for(rate):
    with pytest.raises(ValueError, match="for videos: give a number over 0, at most 1, the server's own") as error:
        limits_of_request({"fps": rate}, SERVER)
    assert len(str(error.value)) < 200
    if rate != 1.5:
        with pytest.raises(ValueError, match="give a number over 0"):
            limits_of_request({"fps": rate}, FrameLimits(8))


@pytest.mark.parametrize("other", ["video_backend", "backend", "max_frames", "frames_indices", "", "x" * 5000])
def test_a_request_sets_nothing_else(other):
    with pytest.raises(ValueError, match="for videos: give num_frames and fps alone") as error:
        limits_of_request({"num_frames": 1, other: "opencv"}, SERVER)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("server", "room", "num_videos", "frames"),
    [(64, 1000, 1, 64), (64, 100, 2, 50), (64, 100, 0, 64), (8, 1000, 1, 8), (64, 0, 1, 1), (4, 3, 8, 1)],
)
def test_frames_that_memory_is_planned_for(server, room, num_videos, frames):
    """What a request may have, within the room of a prompt, and always one."""
    assert frames_to_plan(FrameLimits(server), room, num_videos) == frames
