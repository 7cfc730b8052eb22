"""Small local copies of public benchmarks in their published layouts, with real clips; one clip of each is damaged or missing."""

import json
from pathlib import Path

from helpers.media import numbered_picture, write_video
from PIL import Image


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def clip(path: Path, seconds: int = 2, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, 4 * seconds, fps=4, **options)


def damaged(path: Path) -> Path:
    clip(path)
    path.write_bytes(path.read_bytes()[:1500])
    return path


def videomme(root: Path) -> Path:
    def row(number: int, video: str, duration: str, answer: str) -> dict:
        return {
            "video_id": f"{number:03}",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": "https://example.org",
            "videoID": video,
            "question_id": f"{number:03}-1",
            "task_type": "Object Recognition",
            "question": f"What is red in clip {number}?",
            "options": ["A. A circle.", "B. A square.", "C. A ring.", "D. A cross."],
            "answer": answer,
        }

    rows = [
        row(1, "one", "short", "A"),
        row(2, "one", "short", "B"),
        row(3, "two", "medium", "C"),
        row(4, "cut", "long", "D"),
    ]
    write_parquet(root / "videomme" / "test-00000-of-00001.parquet", rows)
    clip(root / "data" / "one.mp4")
    clip(root / "data" / "two.mkv")
    damaged(root / "data" / "cut.mp4")
    (root / "subtitle").mkdir()
    (root / "subtitle" / "one.srt").write_text(
        '1\n00:00:00,000 --> 00:00:01,000\n<font color="white" size=".72c">hello there</font>\n\n'
        "2\n00:00:01,000 --> 00:00:01,500\nhello there\n\n3\n00:00:01,500 --> 00:00:02,000\nsecond\nline\n",
        encoding="utf-8",
    )
    return root


def mlvu_dev(root: Path) -> Path:
    """The authors' layout."""

    def row(video: str, kind: str, answer: str) -> dict:
        return {
            "video": video,
            "duration": 2.0,
            "question": "What is it?",
            "candidates": ["a dog", "a cat", "a cow", "a hen"],
            "answer": answer,
            "question_type": kind,
        }

    write_json(root / "json" / "1_plotQA.json", [row("a.mp4", "plotQA", "a cat"), row("b.mp4", "plotQA", "a dog")])
    write_json(root / "json" / "4_count.json", [row("c.mp4", "count", "a hen"), row("gone.mp4", "count", "a hen")])
    write_json(root / "json" / "9_summary.json", [{"video": "a.mp4", "question": "Sum up.", "answer": "x"}])
    for path in ("1_plotQA/a.mp4", "1_plotQA/b.mp4", "4_count/c.mp4"):
        clip(root / "video" / path)
    return root


def mlvu_dev_parquet(root: Path) -> Path:
    """The layout that lmms-eval reads."""
    question = "What is it?\n(A) a dog\n(B) a cat\n(C) a cow\n(D) a hen"
    rows = [
        {
            "video_name": name,
            "duration": 2.0,
            "question": question,
            "candidates": None,
            "answer": answer,
            "task_type": kind,
        }
        for name, answer, kind in (
            ("a.mp4", "B", "plotQA"),
            ("b.mp4", "A", "plotQA"),
            ("c.mp4", "D", "count"),
            ("d.mp4", "D", "count"),
        )
    ]
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    for name in "abc":
        clip(root / f"{name}.mp4")
    damaged(root / "d.mp4")
    return root


def mlvu_test(root: Path) -> Path:
    def row(id: str, video: str, kind: str, answer: str) -> dict:
        candidates = ["one", "two", "three", "four", "five", "six"]
        return {
            "video": video,
            "question": "How many?",
            "candidates": candidates,
            "question_type": kind,
            "question_id": id,
            "answer": answer,
        }

    rows = [
        row("AC_0", "a.mp4", "count", "six"),
        row("SQ_0", "b.mp4", "sportsQA", "one"),
        row("SQ_1", "c.mp4", "sportsQA", "two"),
    ]
    write_json(root / "test-ground-truth" / "test_mcq_gt.json", rows)
    clip(root / "video" / "a.mp4")
    clip(root / "video" / "b.mp4")
    damaged(root / "video" / "c.mp4")
    return root


def longvideobench(root: Path) -> Path:
    def row(id: str, video: str, correct: int, group: int, candidates: list[str]) -> dict:
        return {
            "id": id,
            "video_id": id,
            "video_path": video,
            "question": "When is the ring shown?",
            "candidates": candidates,
            "correct_choice": correct,
            "duration_group": group,
            "question_category": "S2E",
            "subtitle_path": f"{id}_en.json",
            "starting_timestamp_for_subtitles": 0,
            "duration": 2.0,
        }

    rows = [
        row("x_0", "x.mp4", 0, 15, ["first", "last"]),
        row("y_0", "y.mp4", 4, 3600, ["a", "b", "c", "d", "e"]),
        row("z_0", "z.mp4", 1, 3600, ["first", "last"]),
    ]
    write_json(root / "lvb_val.json", rows)
    write_json(root / "lvb_test_wo_gt.json", [{k: v for k, v in row.items() if k != "correct_choice"} for row in rows])
    write_json(
        root / "subtitles" / "x_0_en.json", [{"start": "00:00:00.000", "end": "00:00:01.000", "line": "welcome"}]
    )
    write_json(root / "subtitles" / "y_0_en.json", [{"timestamp": [0.0, 1.0], "text": "good bye"}])
    clip(root / "videos" / "x.mp4")
    clip(root / "videos" / "y.mp4")
    return root


def longvideobench_parquet(root: Path) -> Path:
    longvideobench(root)
    rows = json.loads((root / "lvb_val.json").read_text())
    for row in rows:
        row |= {f"option{i}": text for i, text in enumerate([*row.pop("candidates"), *["N/A"] * 5][:5])}
    write_parquet(root / "validation-00000-of-00001.parquet", rows)
    (root / "lvb_val.json").unlink()
    return root


def mvbench(root: Path) -> Path:
    def row(video: str, **more) -> dict:
        return {
            "video": video,
            "question": "What moves?",
            "candidates": ["ball", "cube", "cone"],
            "answer": "cube",
            **more,
        }

    write_json(root / "json" / "moving_count.json", [row("a.mp4"), row("gone.mp4")])
    write_json(root / "json" / "action_sequence.json", [row("long.mp4", start=2.0, end=3.0, accurate_start=2.2)])
    write_json(root / "json" / "episodic_reasoning.json", [row("pictures", start=0.0, end=2.0)])
    clip(root / "video" / "clevrer" / "video_validation" / "a.mp4")
    clip(root / "video" / "star" / "Charades_v1_480" / "long.mp4", seconds=4)
    folder = root / "video" / "tvqa" / "frames_fps3_hq" / "pictures"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(numbered_picture(number)).save(folder / f"{number:05}.jpg", quality=95)
    return root


def egoschema(root: Path) -> Path:
    """The authors' layout."""

    def row(id: str) -> dict:
        return {"q_uid": id, "question": "What does C do?", **{f"option {i}": f"C does thing {i}." for i in range(5)}}

    write_json(root / "questions.json", [row("u0"), row("u1"), row("u2")])
    write_json(root / "subset_answers.json", {"u0": 3, "u2": 0})
    clip(root / "videos" / "u0.mp4")
    clip(root / "videos" / "u1.mp4")
    damaged(root / "videos" / "u2.mp4")
    return root


def egoschema_parquet(root: Path) -> Path:
    """The layout that lmms-eval reads."""
    rows = [
        {
            "question_idx": str(i),
            "question": "What does C do?",
            "video_idx": f"u{i}",
            "option": [f"{letter}. C does thing {n}." for n, letter in enumerate("ABCDE")],
            "answer": answer,
        }
        for i, answer in ((0, "3"), (2, "0"))
    ]
    write_parquet(root / "Subset" / "test-00000-of-00001.parquet", rows)
    clip(root / "videos" / "u0.mp4")
    damaged(root / "videos" / "u2.mp4")
    return root


def ssv2(root: Path) -> Path:
    templates = [
        "Pushing [something]",
        "Lifting [something] up",
        "Spinning [something]",
        "Dropping [something]",
        "Holding [something]",
    ]
    write_json(
        root / "labels" / "labels.json", {t.replace("[", "").replace("]", ""): str(i) for i, t in enumerate(templates)}
    )
    rows = [
        {"id": str(100 + i), "label": "doing", "template": template, "placeholders": ["cup"]}
        for i, template in enumerate(templates[:3])
    ]
    write_json(root / "labels" / "validation.json", rows)
    for id in ("100", "101"):
        clip(root / "20bn-something-something-v2" / f"{id}.webm", codec="libvpx-vp9", b_frames=0)
    return root
