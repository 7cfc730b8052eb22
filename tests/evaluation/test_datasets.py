"""Local copies of public benchmarks: layouts, prompts, answers, metrics, and what is damaged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import benchmark_copies as copies
from helpers.media import number_of, numbers_of
from helpers.processors import tiny_processor

from cacovid_hf.evaluation.clips import read_clip
from cacovid_hf.evaluation.datasets import Clip, clustered_mean, load_benchmark
from cacovid_hf.evaluation.datasets.ssv2 import draw_options
from cacovid_hf.utils.option_letters import extract_choice

pytest.importorskip("pyarrow")
LETTER = "\nAnswer with the option's letter from the given choices directly."
VIDEOMME = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\nWhat is red in clip 1?\nA. A circle.\nB. A square.\nC. A ring.\nD. A cross."
)
MLVU = "What is it?\n(A) a dog\n(B) a cat\n(C) a cow\n(D) a hen\nOnly give the best option.\nBest option: ("
LVB = "When is the ring shown?\nA. first\nB. last\nAnswer with the option's letter from the given choices directly.\n"
EGO = "What does C do?\n" + "\n".join(f"{c}. C does thing {i}." for i, c in enumerate("ABCDE")) + LETTER
MVB = "Question:What moves?\nOption:\n(A) ball\n(B) cube\n(C) cone\nOnly give the best option.\n"
# Name, what writes the copy, the first prompt, all answers, the videos that cannot be read.
LAYOUTS = {
    "videomme": ("videomme", copies.videomme, VIDEOMME + "\n" + LETTER, "ABCD", ["cut.mp4"]),
    "videomme_w_subtitle": (
        "videomme_w_subtitle",
        copies.videomme,
        "This video's subtitles are listed below: \nhello there\nsecond line\n" + VIDEOMME + "\nThe best answer is:",
        "ABCD",
        ["cut.mp4"],
    ),
    "mlvu_dev": ("mlvu_dev", copies.mlvu_dev, MLVU, "BADD", ["gone.mp4"]),
    "mlvu_dev_parquet": ("mlvu_dev", copies.mlvu_dev_parquet, MLVU, "BADD", ["d.mp4"]),
    "mlvu_test": (
        "mlvu_test",
        copies.mlvu_test,
        "How many?\n(A) one\n(B) two\n(C) three\n(D) four\n(E) five\n(F) six\nOnly give the best option.\nBest option: (",
        "FAB",
        ["c.mp4"],
    ),
    "longvideobench": ("longvideobench", copies.longvideobench, LVB, "AEB", ["z.mp4"]),
    "longvideobench_parquet": ("longvideobench", copies.longvideobench_parquet, LVB, "AEB", ["z.mp4"]),
    "longvideobench_w_subtitle": (
        "longvideobench_w_subtitle",
        copies.longvideobench,
        "welcome\n" + LVB,
        "AEB",
        ["z.mp4"],
    ),
    "longvideobench_test": ("longvideobench_test", copies.longvideobench, LVB, [None] * 3, ["z.mp4"]),
    "mvbench": ("mvbench", copies.mvbench, MVB, "BBBB", ["gone.mp4"]),
    "egoschema": ("egoschema", copies.egoschema, EGO, "DA", ["u2.mp4"]),
    "egoschema_parquet": ("egoschema", copies.egoschema_parquet, EGO, "DA", ["u2.mp4"]),
    "egoschema_full": ("egoschema_full", copies.egoschema, EGO, ["D", None, "A"], ["u2.mp4"]),
    "ssv2": ("ssv2", copies.ssv2, None, None, ["102.mp4"]),
}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("llava_onevision")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, tmp_path, processor):
    name, write, prompt, answers, unreadable = LAYOUTS[layout]
    benchmark = load_benchmark(f"{name}={write(tmp_path / 'copy')}")
    samples = [benchmark[i] for i in range(len(benchmark))]
    assert len({sample.id for sample in samples}) == len(samples)
    if prompt is not None:
        assert samples[0].prompt == prompt
        assert [sample.answer for sample in samples] == list(answers)
    failed = []
    for sample in samples:
        assert sample.answer is None or sample.answer in "ABCDEF"[: len(sample.options)]
        assert all(not option.startswith(("A.", "(A)")) for option in sample.options)
        try:
            video = read_clip(processor, sample.video, 4)
        except (ValueError, OSError) as error:
            failed.append(next(word for word in unreadable if word in str(error)))
        else:
            assert video.frames.dtype == np.uint8
            assert 1 <= len(video.frames) <= 4
            assert len(video.timestamps) == len(video.frames)
    assert failed == unreadable
    assert len(load_benchmark(f"{name}={tmp_path / 'copy'}", limit=2)) == 2


def test_something_something_options():
    templates = sorted(f"Template {i}" for i in range(30))
    drawn = [draw_options(str(id), templates[id % 30], templates) for id in range(400)]
    for id, (options, letter) in enumerate(drawn):
        assert len(set(options)) == 4
        assert options["ABCD".index(letter)] == templates[id % 30]
        assert (options, letter) == draw_options(str(id), templates[id % 30], templates)
    shares = [sum(letter == c for _, letter in drawn) / 400 for c in "ABCD"]
    assert max(shares) < 0.35
    assert min(shares) > 0.15


def test_only_the_part_of_a_clip_is_shown(tmp_path, processor):
    path = copies.clip(tmp_path / "long.mp4", seconds=5)  # picture n at n / 4 seconds
    whole = read_clip(processor, Clip(path), 5)
    part = read_clip(processor, Clip(path, start=2.0, end=4.0), 2)
    assert numbers_of(whole.frames)[0] == 0
    assert numbers_of(whole.frames)[-1] == 19
    assert numbers_of(part.frames) == [8, 15]
    assert part.timestamps == pytest.approx([2.0, 3.75])
    assert numbers_of(read_clip(processor, Clip(path, start=4.5, end=99.0), 8).frames) == [
        18
    ]  # one frame a second at most
    with pytest.raises(ValueError, match=r"lasts 5\.0 seconds, and the part to show begins at 7\.0"):
        read_clip(processor, Clip(path, start=7.0, end=9.0), 2)


def test_folder_of_pictures(tmp_path, processor):
    root = copies.mvbench(tmp_path)
    folder = root / "video" / "tvqa" / "frames_fps3_hq" / "pictures"
    video = read_clip(processor, Clip(folder, start=0.0, end=2.0, fps=3.0), 2)
    assert [number_of(frame) for frame in video.frames] == [0, 5]
    assert video.timestamps == pytest.approx([0.0, 5 / 3])
    (folder / "00005.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="pictures has a damaged picture"):
        read_clip(processor, Clip(folder, end=2.0, fps=3.0), 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder without pictures"):
        read_clip(processor, Clip(tmp_path / "empty"), 2)


def test_mvbench_prefers_clips_that_are_cut(tmp_path):
    copies.mvbench(tmp_path)
    copies.clip(tmp_path / "video" / "star" / "Charades_segment" / "long.mp4", seconds=1)
    clips = {s.id: s.video for s in load_benchmark(f"mvbench={tmp_path}").samples}
    assert clips["action_sequence-0"].path.parent.name == "Charades_segment"
    assert (clips["action_sequence-0"].start, clips["action_sequence-0"].end) == (None, None)
    assert (clips["episodic_reasoning-0"].end, clips["episodic_reasoning-0"].fps) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        (" b. ", "B"),
        ("(C)", "C"),
        ("C) a ring", "C"),
        ("**D**", "D"),
        ("The answer is B.", "B"),
        ("I first thought the answer is A, but the best option is (C).", "C"),
        ("It cannot be (A); (D) fits", "D"),
        ("A square is shown", "B"),  # the article is no choice
        ("It shows a square.", "B"),
        ("red circle or ring, so C", "C"),
        ("Option D", "D"),
        ("E", ""),  # there is no fifth option
        ("(E)", ""),
        ("", ""),
        ("I do not know", ""),
        ("circle, square", ""),  # two of them
        ("Because", ""),
        ("answer: a", "A"),
    ],
)
def test_extraction(response, letter):
    assert extract_choice(response, ["circle", "square", "ring", "cross"]) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The answer is a red car.", "B"),
        ("The correct option is a dog.", "C"),
        ("Answer: a cat", "D"),
        ("A red car", "B"),
        ("a red car", "B"),
        ("It's a red car", "B"),
        ("The best answer is a dog (C)", "C"),
        ("The answer is a dog. Option A is wrong.", "C"),
        ("The answer is B. Option A is wrong.", "B"),
        ("The answer is B, because option A is not shown", "B"),
        ("Option A is wrong; option D is right", "D"),
        ("Option D, because there is no a dog", "D"),
        ("The correct answer is option B, not option C", "B"),
        ('A "stop" sign is seen, so the answer is C.', "C"),
        ('A "stop" sign', ""),
        ('"B"', "B"),
        ('"B" it is', "B"),
        ("'B', I think", "B"),
        ("I'm sure it is B", "B"),
        ("E.g. C", "C"),
        ("The choice is a matter of taste; B", "B"),
        ("the answer is a", "A"),
        ("the answer is a) a blue car", "A"),
        ("the answer is b because it is", "B"),
        ("The answer is A because it is", "A"),
        ("A is right", "A"),
        ("**Answer:** B", "B"),
        ("Answer:\n\n(B)", "B"),
        ("\\boxed{B}", "B"),
        ("b - a red car", "B"),
        ("**B. a red car**", "B"),
        ("B\nIt is red.", "B"),
        ("B, as A is blue", "B"),
    ],
)
def test_extraction_does_not_take_articles_for_labels(response, letter):
    assert extract_choice(response, ["a blue car", "a red car", "a dog", "a cat"]) == letter


def test_extraction_of_abbreviations():
    assert extract_choice("E.g. C", ["u", "v", "w", "x", "y"]) == "C"


def test_extraction_prefers_the_longer_text():
    assert extract_choice("it is a red square", ["square", "red square"]) == "B"


def rows(*outcomes):
    """Rows from (task, video, correct)."""
    return [
        {"id": f"{i}", "video_id": video, "groups": {"task_type": task}, "correct": correct}
        for i, (task, video, correct) in enumerate(outcomes)
    ]


def test_standard_error_is_binomial_without_clusters():
    outcomes = rows(*[("t", "", i < 3) for i in range(10)])
    estimate = clustered_mean(outcomes)
    assert estimate.value == pytest.approx(0.3)
    assert estimate.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 10))


def test_standard_error_of_questions_on_one_video():
    """Three questions a video that are right or wrong together are one observation."""
    outcomes = rows(*[("t", f"v{v}", v < 4) for v in range(10) for _ in range(3)])
    assert clustered_mean(outcomes).standard_error == pytest.approx(math.sqrt(0.4 * 0.6 / 10))


def test_macro_mean_and_its_error(tmp_path):
    benchmark = load_benchmark(f"mlvu_dev={copies.mlvu_dev(tmp_path)}")
    outcomes = rows(*[("count", "", i < 1) for i in range(2)], *[("plotQA", "", i < 6) for i in range(8)])
    score = benchmark.score(outcomes)
    assert score["value"] == pytest.approx((0.5 + 0.75) / 2)
    assert score["standard_error"] == pytest.approx(math.sqrt(0.25 / 2 + 0.1875 / 8) / 2)
    assert score["metric"] == "mean accuracy over task types"
    assert {name: part["count"] for name, part in score["parts"]["task_type"].items()} == {"count": 2, "plotQA": 8}


def test_videomme_by_duration(tmp_path):
    benchmark = load_benchmark(f"videomme={copies.videomme(tmp_path)}")
    answered = [
        {"id": s.id, "video_id": s.video_id, "groups": s.groups, "correct": s.answer in "AC"} for s in benchmark.samples
    ]
    score = benchmark.score(answered)
    assert score["value"] == 0.5
    assert {name: part["value"] for name, part in score["parts"]["duration"].items()} == {
        "long": 0,
        "medium": 1,
        "short": 0.5,
    }


def test_submissions(tmp_path):
    benchmark = load_benchmark(f"egoschema_full={copies.egoschema(tmp_path)}")
    assert benchmark.submission({"u0": "D", "u1": ""}) == {"u0": 3, "u1": -1}


def test_tiny_is_the_benchmark_that_accuracy_asks():
    from cacovid_hf.tiny.synthetic import sample_questions

    benchmark = load_benchmark("tiny", 12, seed=3)
    for index, (clip, question) in enumerate(sample_questions(12, 3)):
        sample = benchmark[index]
        assert (sample.prompt, sample.answer) == (question.text, question.answer)
        assert np.array_equal(sample.video, clip.frames)
    through_mp4 = load_benchmark("tiny_mp4", 12, seed=3)[0].video
    assert through_mp4.shape == benchmark[0].video.shape
    error = np.abs(through_mp4.astype(int) - benchmark[0].video).mean()
    assert 0 < error < 12


def damaged_parquet(root: Path) -> str:
    copies.videomme(root)
    next((root / "videomme").iterdir()).write_bytes(b"PAR1 no more")
    return f"videomme={root}"


def other_columns(root: Path) -> str:
    copies.write_parquet(root / "test-0.parquet", [{"question": "x"}])
    return f"videomme={root}"


def no_list(root: Path) -> str:
    copies.write_json(root / "lvb_val.json", {"a": 1})
    return f"longvideobench={root}"


def strange_answer(root: Path) -> str:
    copies.mvbench(root)
    path = root / "json" / "moving_count.json"
    path.write_text(path.read_text().replace('"answer": "cube"', '"answer": "sphere"'))
    return f"mvbench={root}"


def empty_json(root: Path) -> str:
    copies.write_json(root / "questions.json", [])
    copies.write_json(root / "subset_answers.json", {})
    return f"egoschema={root}"


def without_answers(root: Path) -> str:
    copies.egoschema(root)
    (root / "subset_answers.json").unlink()
    return f"egoschema={root}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: "nothing", "Benchmark 'nothing' is unknown: choose tiny"),
        (lambda root: "videomme", "videomme is read from a local copy: give its folder"),
        (lambda root: f"tiny={root}", "tiny is made, not read"),
        (lambda root: f"videomme={root / 'gone'}", "is not a folder"),
        (lambda root: f"mvbench={root}", "is named json/"),
        (damaged_parquet, "cannot be read"),
        (other_columns, "has no column 'videoID'"),
        (no_list, "is not a list of objects"),
        (
            strange_answer,
            r"row 1 of .*moving_count\.json: the answer 'sphere' is not an option \(A\. ball; B\. cube; C\. cone\)",
        ),
        (empty_json, "holds no question"),
        (without_answers, "no answer is known"),
    ],
)
def test_what_is_no_copy(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_benchmark(make(tmp_path))


def test_damaged_json(tmp_path):
    copies.longvideobench(tmp_path)
    (tmp_path / "lvb_val.json").write_text(json.dumps([{"id": 1}])[:-3])
    with pytest.raises(ValueError, match=r"lvb_val\.json cannot be read"):
        load_benchmark(f"longvideobench={tmp_path}")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    copies.videomme(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install"):
        load_benchmark(f"videomme={tmp_path}")
