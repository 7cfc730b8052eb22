"""Training data of others: lines that are damaged, values of wrong types, answers that are not options, paths that lead elsewhere."""

import json
import random
import shutil

import pytest
from transformers import AutoProcessor

from cacovid_hf import with_video_reader
from cacovid_hf.tiny import clips, model_path
from cacovid_hf.training.data import AnswerCollator, VideoQuestions, question_text
from cacovid_hf.training.rewards import multiple_choice_reward
from cacovid_hf.training.sources import check_videos
from cacovid_hf.training.video_paths import video_path

CLIP = clips()[0]
GOOD = {"problem": "What is it?", "options": ["red", "blue"], "solution": "<answer>B</answer>", "path": "clip0.mp4"}
ASKED = "What is it?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def processor():
    return with_video_reader(AutoProcessor.from_pretrained(model_path()))


# ---------------------------------------------------------------- options and answers


@pytest.mark.parametrize(
    ("options", "solution"),
    [
        (["red", "blue"], "<answer>B</answer>"),
        (["red", "blue"], "<think>(A)?</think><answer>blue</answer>"),
        (["A. red", "B. blue"], "b"),
        (["(A) red", "(B) blue"], "B. blue"),
        ({"B": "blue", "A": "red"}, "Blue"),
        ([{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "\\boxed{B}"),
        ("A. red\nB. blue", "B"),
    ],
    ids=str,
)
def test_options_are_asked_with_letters_and_answered_by_one(options, solution, processor):
    sample = {**GOOD, "options": options, "solution": solution}
    assert question_text(sample) == ASKED
    (question,) = AnswerCollator(processor, blind=True)([sample])["questions"]
    assert question.solution == "B"
    assert question.answer.tolist() == processor.tokenizer("B", add_special_tokens=False)["input_ids"]
    # An answer that is written may be the text.
    (question,) = AnswerCollator(processor, blind=True, scored_types=())([sample])["questions"]
    assert question.answer is None
    assert multiple_choice_reward(["B", "Blue.", "A", "red"], [question.solution] * 4) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"solution": "C"}, "the answer 'C' is not an option (A. red; B. blue): give an option's letter or its text."),
        ({"solution": "green"}, "the answer 'green' is not an option"),
        (
            {"solution": "A. blue"},
            "the answer 'A. blue' has the letter of option A and the text of option B: give one of them",
        ),
        ({"solution": 1}, "the answer 1 is not an option"),
        ({"options": ["B", "A"], "solution": "A"}, "is the letter of option A and the text of option B"),
        ({"options": ["red"]}, "1 options: multiple choice needs 2 to 26"),
        ({"options": [str(n) for n in range(27)]}, "27 options"),
        ({"options": [["red"], ["blue"]]}, "options[0] (['red']) is not a text"),
        ({"solution": float("nan")}, "the sample has no solution"),
        ({"problem": ["What?"]}, "the problem (['What?']) is not a text"),
        ({"problem": "What \ud800?"}, "lone surrogate"),
        ({"solution": "\udc80", "problem_type": "OCR"}, "lone surrogate"),
    ],
    ids=lambda value: f"{value!r:.50}",
)
def test_a_sample_whose_answer_is_not_an_option_is_skipped_with_the_reason(change, reason, processor):
    batch = AnswerCollator(processor, blind=True)([{**GOOD, **change}, GOOD])
    assert batch["places"] == [1]
    assert len(batch["skipped"]) == 1
    assert batch["skipped"][0].startswith("clip0.mp4: ")
    assert reason in batch["skipped"][0]


def test_a_file_in_base64_is_not_repeated(processor):
    batch = AnswerCollator(processor)([{**GOOD, "path": None, "video": f"data:video/mp4;base64,{'A' * 50_000}"}])
    assert len(batch["skipped"][0]) < 700


# ---------------------------------------------------------------- lines

BAD_LINES = [
    (
        b'{"problem": "What?", 5}',
        "the line is not JSON (Expecting property name enclosed in double quotes, character ",
    ),
    (b"{}", "the sample has no problem"),
    (b"5", "the line is 5: give a JSON object"),
    (b'"text"', "the line is 'text': give a JSON object"),
    (b'{"problem": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deep"),
    (b'{"problem": ' + b"[" * 200 + b"]" * 200 + b"}", "nested more than 64 levels deep"),
    (b'{"problem": ' + b"9" * 5_000 + b"}", "the line is not JSON ("),
    (b'{"problem": "\xff\xfe"}', "the line is not JSON ("),
    (json.dumps({**GOOD, "problem": float("nan")}).encode(), "the sample has no problem"),
    (json.dumps({**GOOD, "problem": "\ud800"}).encode(), "lone surrogate"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[f"{line[:24]!r}" for line, _ in BAD_LINES])
def test_a_bad_line_is_named_by_file_and_number(line, reason, processor, tmp_path):
    file = tmp_path / "samples.jsonl"
    good = json.dumps(GOOD).encode()
    file.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n \n" + line + b"\r\n" + good)
    data = VideoQuestions(file)
    assert [data[0], data[2]] == [GOOD, GOOD]
    batch = AnswerCollator(processor, blind=True)([data[n] for n in range(len(data))])
    assert batch["places"] == [0, 2]
    (said,) = batch["skipped"]
    assert reason in said
    assert "\n" not in said
    assert "line 1" not in said  # of the parser, which sees one line
    if "the line" in reason or "nested" in reason:
        assert said.startswith(f"{file}, line 4: ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["array", "lines"])
def test_byte_order_marks(encoding, form, tmp_path):
    samples = [{**GOOD, "problem": f"Was ist größer, {n}?\u2028"} for n in range(3)]
    text = json.dumps(samples, ensure_ascii=False, indent=1)
    if form == "lines":
        text = "\r\n\r\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples)
    file = tmp_path / "samples.jsonl"
    file.write_bytes(text.encode(encoding))
    data = VideoQuestions(file)
    assert [data[n] for n in range(len(data))] == samples


def test_a_damaged_array_is_told_in_one_line(tmp_path):
    file = tmp_path / "samples.json"
    for text in ("[" * 20_000, json.dumps([GOOD, 3]), json.dumps([GOOD])[:-3], '[{"problem": 1e}]'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"samples\.json (is not JSON|holds something else)") as told:
            VideoQuestions(file)
        assert len(str(told.value)) < 400


ODD_VALUES = [
    None, True, 0, -1, 1e308, float("nan"), float("-inf"), 10**400, "", " ", "\ud800", "\x00", "B", [], {}, [[]], [None], ["a"], ["a", "a"],
    {"A": None}, {"A": "x", "B": ["y"]}, {"x": "y"}, "A. one", '["a", "b"]', "[" * 3000, "<answer>", "../..", "/dev/zero", "file:///etc/passwd",
    "http:", "x" * 5000, {"path": None, "bytes": "x"}, {"path": ["a"]},
]  # fmt: skip


def mutated(line: bytes, draw: random.Random) -> bytes:
    """One damage: to the bytes, or to a value."""
    kind = draw.randrange(8)
    place = draw.randrange(len(line))
    if kind == 0:
        return line[:place]
    if kind == 1:
        return line[:place] + bytes([draw.randrange(256)]) + line[place + 1 :]
    if kind == 2:
        return line[:place] + line[place + draw.randrange(1, 20) :]
    if kind == 3:
        return (
            line[:place] + draw.choice([b"{", b"[" * 3000, b"NaN", b'"', b"\\u", b"\x00", b"9" * 6000]) + line[place:]
        )
    sample = json.loads(line)
    if kind == 4:
        del sample[draw.choice(list(sample))]
    else:
        sample[draw.choice([*sample, "video", "problem_type"])] = draw.choice(ODD_VALUES)
    return json.dumps(sample).encode()


def fuzz(tmp_path, processor, count, seed, blind):
    """Reads `count` mutated lines among good ones; how many were taken and how many skipped."""
    draw = random.Random(seed)
    kinds = [
        {**GOOD, "problem_type": "multiple choice"},
        {**GOOD, "options": {"A": "red", "B": "blue"}},
        {**GOOD, "options": None, "problem_type": "numerical", "solution": "3"},
        {**GOOD, "options": [], "problem_type": "free-form", "solution": "it falls"},
    ]
    lines = [mutated(json.dumps(draw.choice(kinds)).encode(), draw).replace(b"\n", b"") for _ in range(count)]
    good = json.dumps(GOOD).encode()
    file = tmp_path / "fuzzed.jsonl"
    file.write_bytes(b"".join(line + b"\n" + good + b"\n" for line in lines))
    shutil.copy(CLIP.path, tmp_path / "clip0.mp4")
    data = VideoQuestions(file)
    collate = AnswerCollator(processor, root=tmp_path, blind=blind, num_frames=2)
    taken, reasons = 0, []
    for start in range(0, len(data), 50):
        samples = [data[n] for n in range(start, min(start + 50, len(data)))]
        batch = collate(samples)
        assert sorted(batch["places"]) == sorted(set(batch["places"]))
        assert len(batch["places"]) + len(batch["skipped"]) == len(samples)
        assert {n for n, sample in enumerate(samples) if sample == GOOD} <= set(batch["places"])
        taken += len(batch["places"])
        reasons += batch["skipped"]
    for reason in reasons:
        assert len(reason.splitlines()) == 1
        reason.encode()
    return taken - count, len(reasons)


def test_mutated_lines_are_taken_or_skipped(tmp_path, processor):
    taken, skipped = fuzz(tmp_path, processor, 150, 0, blind=True)
    assert taken > 10
    assert skipped > 50


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "blind"), [(1, True), (2, True), (3, False)])
def test_two_thousand_mutated_lines_are_taken_or_skipped(seed, blind, tmp_path, processor):
    taken, skipped = fuzz(tmp_path, processor, 1000 if blind else 200, seed, blind)
    print(f"seed {seed}: {taken} taken, {skipped} skipped")
    assert taken > 10
    assert skipped > 50


# ---------------------------------------------------------------- paths


@pytest.fixture
def folders(tmp_path):
    """A root with a clip, and a clip outside of it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "sub", outside):
        folder.mkdir(parents=True)
        shutil.copy(CLIP.path, folder / "a clip.mp4")
    (root / "out.mp4").symlink_to(outside / "a clip.mp4")
    (root / "folder").symlink_to(outside)
    (root / "in.mp4").symlink_to(root / "sub" / "a clip.mp4")
    (tmp_path / "root2").symlink_to(root)
    return root, outside


WITHIN = ["sub/a clip.mp4", "sub/../sub/a clip.mp4", "in.mp4", "{root}/sub/a clip.mp4", "file://{root}/sub/a clip.mp4", "file://{root}/sub/a%20clip.mp4",
          "file:{root}/in.mp4", "FILE://localhost{root}/in.mp4", "{root}/../root2/in.mp4"]  # fmt: skip
OUT = ["../outside/a clip.mp4", "sub/../../outside/a clip.mp4", "{outside}/a clip.mp4", "file://{outside}/a clip.mp4", "file://{outside}/a%20clip.mp4",
       "file:../outside/a clip.mp4", "FILE:{outside}/a clip.mp4", "out.mp4", "folder/a clip.mp4", "folder/../outside/a clip.mp4", "file:///etc/passwd", "/etc/passwd",
       "../root-other/a.mp4"]  # fmt: skip


@pytest.mark.parametrize("relative", [False, True])
def test_no_path_leaves_the_root(folders, processor, relative, monkeypatch):
    root, outside = folders
    monkeypatch.chdir(root.parent)
    given = "root" if relative else root
    paths = [path.format(root=root, outside=outside) for path in [*WITHIN, *OUT]]
    samples = [{**GOOD, "path": path} for path in paths]
    batch = AnswerCollator(processor, root=given, num_frames=2)(samples)
    assert sorted(batch["places"]) == list(range(len(WITHIN)))
    assert len(batch["skipped"]) == len(OUT)
    for path, reason in zip(paths[len(WITHIN) :], batch["skipped"], strict=True):
        assert reason == (
            f"{path}: {path} leads out of {given}: move the video there, or name its folder in allowed_roots (data.allowed_roots of a config)."
        )
    videos = [
        {**GOOD, "path": None, "video": video} for video in ({"path": paths[-2], "bytes": None}, outside / "a clip.mp4")
    ]
    assert len(AnswerCollator(processor, root=given)(videos)["skipped"]) == 2


def test_folders_may_be_allowed(folders, processor):
    root, outside = folders
    assert video_path("../outside/a clip.mp4", root, [outside]).endswith("a clip.mp4")
    assert video_path(outside / "a clip.mp4", root, ["/"]) == str(outside / "a clip.mp4")
    assert video_path("out.mp4", root, [outside]) == str(root / "out.mp4")
    with pytest.raises(ValueError, match="leads out of"):
        video_path("/etc/passwd", root, [outside])
    assert video_path("/etc/passwd") == "/etc/passwd"  # without a root paths are taken as they are
    assert video_path("https://example.org/../a.mp4", root) == "https://example.org/../a.mp4"
    with pytest.raises(ValueError, match="leads out of"):
        check_videos([{"path": "/etc/passwd"}], root, "data.train")
    check_videos([{"path": "/etc/passwd"}, {"path": "in.mp4"}], root, "data.train")
    check_videos([{"path": "gone.mp4"}] * 500 + [{"path": "in.mp4"}] * 100, root, "data.train")
    with pytest.raises(FileNotFoundError, match=r"Of 64 videos of data\.train none exists"):
        check_videos([{"path": "gone.mp4"}] * 500, root, "data.train")


def test_roots_below_the_home_folder(folders, monkeypatch):
    root, _ = folders
    monkeypatch.setenv("HOME", str(root.parent))
    assert video_path("in.mp4", "~/root") == str(root / "in.mp4")
    assert video_path("out.mp4", "~/root", ["~/outside"]) == str(root / "out.mp4")
    with pytest.raises(ValueError, match="leads out of"):
        video_path("out.mp4", "~/root")


def test_snapshots_in_the_cache_of_the_hub_link_to_their_blobs(tmp_path):
    repo = tmp_path / "datasets--me--clips"
    snapshot, blobs = repo / "snapshots" / "0123abcd", repo / "blobs"
    (snapshot / "videos").mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(CLIP.path, blobs / "abc")
    (snapshot / "videos" / "a.mp4").symlink_to("../../../blobs/abc")
    assert video_path("a.mp4", snapshot / "videos") == str(snapshot / "videos" / "a.mp4")
    with pytest.raises(ValueError, match="leads out of"):
        video_path("../../../other", snapshot / "videos")
