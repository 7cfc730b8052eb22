"""What tasks of lmms-eval 0.7.3 hand on, without lmms-eval."""

import pytest

from cacovid_hf.evaluation.lmms_eval_arguments import generation_options, video_and_times

GREEDY = {"max_new_tokens": 16, "do_sample": False}


@pytest.mark.parametrize(
    ("given", "options", "stops"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}, []),
        ({"max_new_tokens": 16, "until": ["\n\n"]}, GREEDY, []),  # lmms-eval's own, in every task that names none
        ({"max_new_tokens": 16, "until": ["\n\n", "", "Question:", "\n"]}, GREEDY, ["Question:", "\n"]),
        ({"max_gen_toks": 16, "until": "ASSISTANT", "stop_sequences": ["USER"]}, GREEDY, ["ASSISTANT", "USER"]),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1}, {**GREEDY, "num_beams": 1}, []),
        ({"max_new_tokens": 16, "temperature": 0, "do_sample": True}, GREEDY, []),
        ({"max_new_tokens": 16, "temperature": 0.7, "do_sample": False}, GREEDY, []),
        (
            {"max_new_tokens": 16, "temperature": 0.7, "top_p": 0.9},
            {"max_new_tokens": 16, "do_sample": True, "temperature": 0.7, "top_p": 0.9},
            [],
        ),
        ({"max_new_tokens": 16, "do_sample": True}, {"max_new_tokens": 16, "do_sample": True}, []),
    ],
)
def test_generation_arguments(given, options, stops):
    assert generation_options(given, 1024) == (options, stops, {})


def test_what_generate_does_not_know_is_left_out_and_named():
    given = {"image_aspect_ratio": "original", "seed": 3, "repetition_penalty": 1.1, "skip_special_tokens": True}
    options, _, unserved = generation_options(given, 8)
    assert options == {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.1}
    assert unserved == {"image_aspect_ratio": "original", "seed": 3, "skip_special_tokens": True}


def test_parts_of_clips_are_written_in_two_ways():
    named = {"type": "video", "path": "a.mp4", "video_start": 1.5, "video_end": 4}
    assert video_and_times({"type": "video", "url": named}) == ("a.mp4", 1.5, 4)
    assert video_and_times({"type": "video", "url": {"url": "b.mp4"}}) == ("b.mp4", None, None)
    assert video_and_times({"type": "video", "url": "a.mp4", "start_time": 2.0}) == ("a.mp4", 2.0, None)
    with pytest.raises(ValueError, match="give its path or url"):
        video_and_times({"type": "video", "url": {"video_start": 1}})
