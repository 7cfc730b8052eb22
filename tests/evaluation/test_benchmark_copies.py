"""Copies of benchmarks as they lie on disks: several tables, other encodings, names and folders, and answers that are not options."""

import json
import logging
import random
import shutil
from pathlib import Path

import pytest
from helpers import benchmark_copies as copies

from cacovid_hf.evaluation.datasets import load_benchmark
from cacovid_hf.evaluation.datasets.local_copy import LocalCopy
from cacovid_hf.evaluation.datasets.tables import read_rows

pytest.importorskip("pyarrow")

# Name, what writes the copy, its table, and the name of the column with the answers.
READERS = {
    "videomme": (copies.videomme, "videomme/test-00000-of-00001.parquet", "answer"),
    "mlvu_dev": (copies.mlvu_dev, "json/1_plotQA.json", "answer"),
    "mlvu_dev_parquet": (copies.mlvu_dev_parquet, "data/test-00000-of-00001.parquet", "answer"),
    "mlvu_test": (copies.mlvu_test, "test-ground-truth/test_mcq_gt.json", "answer"),
    "longvideobench": (copies.longvideobench, "lvb_val.json", "correct_choice"),
    "longvideobench_parquet": (copies.longvideobench_parquet, "validation-00000-of-00001.parquet", "correct_choice"),
    "mvbench": (copies.mvbench, "json/moving_count.json", "answer"),
    "egoschema_parquet": (copies.egoschema_parquet, "Subset/test-00000-of-00001.parquet", "answer"),
}
TEXTS = ["mlvu_dev", "mlvu_test", "mvbench"]


def load(reader: str, root: Path):
    return load_benchmark(f"{reader.removesuffix('_parquet')}={root}")


def read_table(path: Path) -> list[dict]:
    return [dict(row.values) for row in read_rows(path)]


def write_table(path: Path, rows: list[dict]) -> None:
    (copies.write_parquet if path.suffix == ".parquet" else copies.write_json)(path, rows)


def change(root: Path, reader: str, answer, place: int = 0) -> Path:
    """Give a row of a copy another answer."""
    _, table, column = READERS[reader]
    rows = read_table(root / table)
    if isinstance(answer, str):
        for row in rows:
            row[column] = str(row[column])
    rows[place][column] = answer
    write_table(root / table, rows)
    return root


@pytest.mark.parametrize("reader", READERS)
def test_an_answer_that_is_not_an_option_is_reported_in_every_reader(reader, tmp_path, caplog):
    write, table, _ = READERS[reader]
    right = [sample.answer for sample in load(reader, write(tmp_path)).samples]
    wrong = 9 if reader.startswith("longvideobench") else "9" if reader.startswith("egoschema") else "a kat"
    changed = load(reader, change(tmp_path, reader, wrong)).samples
    shift = 1 if reader == "mvbench" else 0  # of which another table comes first
    shift += 1 if reader == "mvbench" else 0
    assert [s.answer for s in changed] == [*right[:shift], None, *right[shift + 1 :]]
    assert [bool(s.problem) for s in changed] == [n == shift for n in range(len(right))]
    assert f"row 1 of {tmp_path / table}: the answer " in changed[shift].problem
    assert "is not an option" in changed[shift].problem
    assert f"1 of {len(right)} questions cannot be asked and count neither right nor wrong" in caplog.text


@pytest.mark.parametrize("reader", TEXTS)
@pytest.mark.parametrize("spelling", ["{} ", " {}", "{}.", "UPPER", "Capital", "letter", "(letter)", "both", "wide"])
def test_an_answer_that_differs_in_spelling_alone_is_the_option(reader, spelling, tmp_path):
    root = READERS[reader][0](tmp_path)
    before = [sample.answer for sample in load(reader, root).samples]
    table, place = READERS[reader][1], 2 if reader == "mvbench" else 0
    text, letter = read_table(root / table)[0]["answer"], before[place]
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in text)
    spelt = {
        "UPPER": text.upper(),
        "Capital": text.capitalize(),
        "letter": letter,
        "(letter)": f"({letter.lower()})",
        "both": f"{letter}. {text}",
        "wide": wide,
    }
    samples = load(reader, change(root, reader, spelt.get(spelling) or spelling.format(text))).samples
    assert [sample.answer for sample in samples] == before
    assert not any(sample.problem for sample in samples)


def test_answers_of_other_files_and_labels(tmp_path):
    root = copies.egoschema(tmp_path / "ego")
    copies.write_json(root / "subset_answers.json", {"u0": "3", "u2": 5})
    samples = load("egoschema", root).samples
    assert [sample.answer for sample in samples] == ["D", None]
    assert "the answer 5 is not an option: there are 5, counted from 0" in samples[1].problem
    root = copies.ssv2(tmp_path / "ssv2")
    rows = read_table(root / "labels" / "validation.json")
    rows[0]["template"], rows[1]["template"] = "pushing  [something].", "Pusing [something]"
    copies.write_json(root / "labels" / "validation.json", rows)
    samples = load("ssv2", root).samples
    assert samples[0].options["ABCD".index(samples[0].answer)] == "Pushing something"
    assert "the template 'Pusing something' is not in the label file" in samples[1].problem
    assert samples[2].answer is not None


@pytest.mark.parametrize("withheld", [-1, "-1", None, "", float("nan")])
def test_withheld_answers_of_longvideobench(withheld, tmp_path):
    root = change(copies.longvideobench(tmp_path), "longvideobench", withheld)
    samples = load("longvideobench", root).samples
    assert [sample.answer for sample in samples] == [None, "E", "B"]
    assert not any(sample.problem for sample in samples)


@pytest.mark.parametrize("reader", ["videomme", "mvbench"])
def test_a_column_of_answers_under_another_name_is_told(reader, tmp_path):
    """These two withhold none."""
    write, table, _ = READERS[reader]
    root = write(tmp_path / "copy")
    rows = [
        {name.replace("answer", "Answer"): value for name, value in row.items()} for row in read_table(root / table)
    ]
    write_table(root / table, rows)
    with pytest.raises(ValueError, match=r"has no column 'answer' \(it has .*'Answer'"):
        load(reader, root)


def test_egoschema_as_its_folders_are_copied(tmp_path):
    root = copies.egoschema_parquet(tmp_path / "copy")
    before = [sample.answer for sample in load("egoschema_parquet", root).samples]
    table = root / READERS["egoschema_parquet"][1]
    (table.parent / "data").mkdir()
    table.rename(table.parent / "data" / table.name)
    assert [sample.answer for sample in load("egoschema_parquet", root).samples] == before


@pytest.mark.parametrize("reader", ["videomme", "longvideobench", "egoschema_parquet", "mlvu_dev_parquet"])
def test_all_parts_of_a_table_are_read(reader, tmp_path):
    write, table, _ = READERS[reader]
    root = write(tmp_path / "copy")
    before = [(s.id, s.prompt, s.answer) for s in load(reader, root).samples]
    rows = read_table(root / table)
    (root / table).unlink()
    folder, name = (
        (root / table).parent,
        Path(table).name.replace("lvb_val", "validation").partition("-")[0].removesuffix(".json"),
    )
    for row in rows:
        row |= (
            {f"option{i}": text for i, text in enumerate([*row.pop("candidates"), *["N/A"] * 5][:5])}
            if reader == "longvideobench"
            else {}
        )
    parts = [folder / f"{name}-0000{n}-of-00002.parquet" for n in range(2)]
    copies.write_parquet(parts[0], rows[:1])
    copies.write_parquet(parts[1], rows[1:])
    (folder / "._test-00000-of-00002.parquet").write_bytes(b"of an archive made on macOS")
    after = [(s.id, s.prompt, s.answer) for s in load(reader, root).samples]
    if reader == "mlvu_dev_parquet":  # whose ids are by file and row
        before, after = [b[1:] for b in before], [a[1:] for a in after]
    assert after == before
    assert len(load_benchmark(f"{reader.removesuffix('_parquet')}={root}", limit=2)) == 2
    parts[0].unlink()
    with pytest.raises(ValueError, match=f"{parts[0].name} is missing, one of 2 parts"):
        load(reader, root)


def test_the_same_questions_in_two_tables_are_told(tmp_path):
    root = copies.videomme(tmp_path)
    table = root / "videomme" / "test-00000-of-00001.parquet"
    shutil.copy(table, table.with_name("test.parquet"))
    with pytest.raises(ValueError, match=r"question '001-1' is in .* and in .*: remove the table"):
        load("videomme", root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    "reader", ["mlvu_dev", "mlvu_test", "longvideobench", "longvideobench_w_subtitle", "mvbench", "egoschema", "ssv2"]
)
def test_byte_order_marks(reader, encoding, tmp_path):
    root = getattr(copies, reader.removesuffix("_w_subtitle"))(tmp_path)
    before = [(s.id, s.prompt, s.answer) for s in load(reader, root).samples]
    for path in root.rglob("*.json"):
        path.write_bytes(path.read_text(encoding="utf-8").replace(", ", ",\r\n").encode(encoding))
    assert [(s.id, s.prompt, s.answer) for s in load(reader, root).samples] == before


def test_subtitles_in_another_encoding_and_folder(tmp_path):
    root = copies.videomme(tmp_path)
    srt = root / "subtitle" / "one.srt"
    srt.write_bytes(srt.read_text(encoding="utf-8").replace("\n", "\r\n").encode("utf-16"))
    before = [sample.prompt for sample in load("videomme_w_subtitle", root).samples]
    assert "\nhello there\nsecond line\n" in before[0]
    shutil.move(root / "subtitle", root / "subtitle-unpacked" / "subtitle")
    assert [sample.prompt for sample in load("videomme_w_subtitle", root).samples] == before
    shutil.rmtree(root / "subtitle-unpacked")
    with pytest.raises(ValueError, match=r"no video has subtitles below .*: add them, or use videomme"):
        load("videomme_w_subtitle", root)


def test_subtitles_with_half_a_character(tmp_path):
    root = copies.longvideobench(tmp_path)
    copies.write_json(root / "subtitles" / "x_0_en.json", [{"line": "\ud800"}])
    with pytest.raises(ValueError, match=r"row 1 of .*lvb_val\.json: the prompt .* lone surrogate"):
        load("longvideobench_w_subtitle", root)


@pytest.mark.parametrize("form", ["blank lines", "one line each in .json", "array in .jsonl", "JSONL"])
def test_forms_of_json(form, tmp_path):
    """Of VideoMME, which is read from JSON too."""
    root = copies.videomme(tmp_path)
    before = [(s.prompt, s.answer) for s in load("videomme", root).samples]
    table = root / "videomme" / "test-00000-of-00001.parquet"
    rows = read_table(table)
    table.unlink()
    rows[0]["question"] += "\u2028\x85"  # which end no line
    before[0] = (before[0][0].replace("clip 1?", "clip 1?\u2028\x85"), before[0][1])
    lines = "\r\n\r\n \r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n"
    name, text = {
        "blank lines": ("test.jsonl", lines),
        "one line each in .json": ("test.json", lines),
        "array in .jsonl": ("test.jsonl", json.dumps(rows)),
        "JSONL": ("TEST.JSONL", lines),
    }[form]
    (root / name).write_text(text, encoding="utf-8", newline="")
    assert [(s.prompt, s.answer) for s in load("videomme", root).samples] == before


def test_tables_in_csv(tmp_path):
    path = tmp_path / "rows.CSV"
    path.write_text('\ufeffquestion,answer\r\n"two\nlines, and\u2028one",B\r\n', encoding="utf-8", newline="")
    assert read_table(path) == [{"question": "two\nlines, and\u2028one", "answer": "B"}]
    path.write_text("a,b\n1,2,3\n")
    with pytest.raises(ValueError, match=r"rows\.CSV cannot be read \(row 1 has another number of fields"):
        read_table(path)
    path.write_text('a,b\n"no end,1\n')
    with pytest.raises(ValueError, match=r"rows\.CSV cannot be read \(unexpected end of data"):
        read_table(path)
    path.write_text('a,b\n"' + "x" * 200_000 + '",1\n')
    with pytest.raises(ValueError, match=r"rows\.CSV cannot be read \(field larger"):
        read_table(path)


DAMAGED = [
    ("[" * 20_000, "lvb_val.json cannot be read"),
    ('[{"id": ' + "9" * 5_000 + "}]", "lvb_val.json cannot be read"),
    (b"\xff\xfe\xff", "lvb_val.json cannot be read"),
    (b'[{"id": "\xe4"}]', "lvb_val.json cannot be read"),
    (
        '{"id": 1}\n\n{"id": 2, 3}\n{"id": 4}',
        r"lvb_val.json cannot be read \(line 3: Expecting property name .*, character \d+\)",
    ),
    ('{"id": 1}\n{"id": 2\n', "lvb_val.json cannot be read"),
    ("[1]", r"is not a list of objects \(row 1 is 1\)"),
    ("5", "is not a list of objects"),
]
BAD_VALUES = [
    ({"candidates": None}, "options=None is of type NoneType: give a list of texts"),
    ({"candidates": ["a"]}, "1 options: multiple choice needs 2 to 26"),
    ({"candidates": [["a"], "b"]}, "is not a text"),
    ({"candidates": 5}, "options=5 is of type int: give a list of texts"),
    ({"question": None}, r"question \(None\) is not a text"),
    ({"question": "\ud800"}, "lone surrogate"),
    ({"id": ["a"]}, "id .* is not a text"),
    ({"video_path": {}}, "video_path .* is not a text"),
]


@pytest.mark.parametrize(("text", "message"), DAMAGED, ids=[f"{text[:12]!r}" for text, _ in DAMAGED])
def test_damaged_tables(text, message, tmp_path):
    root = copies.longvideobench(tmp_path)
    (root / "lvb_val.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as told:
        load("longvideobench", root)
    assert str(root / "lvb_val.json") in str(told.value)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES, ids=[f"{changes!r:.40}" for changes, _ in BAD_VALUES])
def test_damaged_rows(changes, message, tmp_path):
    root = copies.longvideobench(tmp_path)
    rows = read_table(root / "lvb_val.json")
    rows[1] |= changes
    copies.write_json(root / "lvb_val.json", rows)
    with pytest.raises(ValueError, match=message) as told:
        load("longvideobench", root)
    assert str(told.value).startswith(f"longvideobench: row 2 of {root / 'lvb_val.json'}: ")


FUZZED = {
    "videomme": (copies.videomme, "test.jsonl"),
    "mlvu_dev": (copies.mlvu_dev, "json/1_plotQA.json"),
    "longvideobench": (copies.longvideobench, "lvb_val.json"),
    "mvbench": (copies.mvbench, "json/action_sequence.json"),
    "egoschema": (copies.egoschema, "subset_answers.json"),
    "ssv2": (copies.ssv2, "labels/validation.json"),
}
ODD_VALUES = [
    None,
    True,
    -1,
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\ud800",
    "x",
    "B",
    [],
    {},
    [None],
    ["a"],
    [["a"], "b"],
    {"A": "x"},
    "[" * 3000,
]


def mutated(text: bytes, draw: random.Random) -> bytes:
    """One damage: to the bytes, or to a value of the first row."""
    kind, place = draw.randrange(7), draw.randrange(len(text))
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + bytes([draw.randrange(256)]) + text[place + 1 :]
    if kind == 2:
        return text[:place] + text[place + draw.randrange(1, 20) :]
    if kind == 3:
        return (
            text[:place] + draw.choice([b"{", b"[" * 3000, b"NaN", b'"', b"\\u", b"\x00", b"9" * 6000]) + text[place:]
        )
    lines = text.startswith(b"{") and text.count(b"\n") > 1
    value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    row = value[0] if isinstance(value, list) else value
    row[draw.choice(list(row))] = draw.choice(ODD_VALUES)
    return b"\n".join(json.dumps(row).encode() for row in value) if lines else json.dumps(value).encode()


def attempt(reader: str, root: Path) -> tuple[str, list]:
    """Why a copy is refused, or its samples."""
    try:
        return "", load(reader, root).samples
    except ValueError as error:
        return str(error), []


def fuzz(reader: str, root: Path, count: int, seed: int) -> dict[str, int]:
    """Loads a copy `count` times with a damaged table; how often it was refused in one clear line, and how often taken."""
    write, name = FUZZED[reader]
    write(root)
    if reader == "videomme":
        table = root / "videomme" / "test-00000-of-00001.parquet"
        (root / name).write_text("\n".join(map(json.dumps, read_table(table))) + "\n")
        table.unlink()
    whole, draw, counts = (root / name).read_bytes(), random.Random(seed), {"taken": 0, "refused": 0}
    for _ in range(count):
        (root / name).write_bytes(mutated(whole, draw))
        refusal, samples = attempt(reader, root)
        counts["refused" if refusal else "taken"] += 1
        if refusal:
            assert refusal.startswith(f"{reader}: ")
            assert str(root) in refusal
            assert len(refusal.splitlines()) == 1
            assert len(refusal) < 700
            refusal.encode()
        for sample in samples:
            sample.prompt.encode()
            sample.id.encode()
            assert sample.answer is None or sample.answer in "ABCDEF"[: len(sample.options)]
    return counts


@pytest.mark.parametrize("reader", FUZZED)
def test_fuzzed_tables_are_taken_or_refused(reader, tmp_path):
    counts = fuzz(reader, tmp_path, 40, 0)
    assert min(counts.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("reader", FUZZED)
def test_many_fuzzed_tables_are_taken_or_refused(reader, tmp_path):
    counts = fuzz(reader, tmp_path, 400, 1)
    print(reader, counts)
    assert min(counts.values()) > 20


# ---------------------------------------------------------------- videos


def clips_of(reader: str, root: Path) -> list[Path]:
    return [sample.video.path for sample in load(reader, root).samples]


def found(name: str, folders: list[str], root: Path, *files: str, anywhere: bool = True) -> str:
    """Where a video is found among empty files of these names."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return LocalCopy(root).video(name, folders, anywhere).relative_to(root).as_posix()


LOOKUPS = [
    # The video's name, the folders, files that are there, the file that is right.
    ("a.mp4", ["data"], ["data/a.mp4"], "data/a.mp4"),
    ("a.mp4", ["data"], ["data/a.MP4"], "data/a.MP4"),
    ("a.mp4", ["data"], ["data/a.webm"], "data/a.webm"),
    ("a.mp4", ["data"], ["data/a.MKV"], "data/a.MKV"),
    ("a.MP4", ["data"], ["data/a.mp4"], "data/a.mp4"),
    ("a.mp4", ["data"], ["data/a.webm", "data/a.mp4"], "data/a.mp4"),
    ("a.webm", ["data"], ["data/a.webm", "data/a.mp4"], "data/a.webm"),
    ("a", ["data"], ["data/a.webm", "data/a.mkv", "data/a.mp4"], "data/a.mp4"),
    ("a", ["data"], ["data/a.WebM"], "data/a.WebM"),
    ("a.b.c", ["data"], ["data/a.b.c.mp4", "data/a.mp4"], "data/a.b.c.mp4"),
    ("a.mp4", ["data", "videos"], ["data/a.webm", "videos/a.mp4"], "videos/a.mp4"),
    ("a.mp4", ["data"], ["data/data/a.mp4"], "data/data/a.mp4"),
    ("a.mp4", ["data"], ["data/part_1/a.mkv"], "data/part_1/a.mkv"),
    ("a.mp4", ["data"], ["copy/data/a.mp4", "x/a.mp4"], "copy/data/a.mp4"),
    ("a.mp4", ["data"], ["DATA/a.mp4"], "DATA/a.mp4"),
    ("a.mp4", ["data"], ["anything/at/all/a.mp4"], "anything/at/all/a.mp4"),
    ("a.mp4", ["data"], ["x/a.mp4", "y/a.mp4"], "data/a.mp4"),  # which of them, nobody knows: not there
    ("a.mp4", ["data"], ["x/.a.mp4", "x/._a.mp4", "__MACOSX/a.mp4", ".cache/a.mp4"], "data/a.mp4"),
    ("A.mp4", ["data"], ["x/a.mp4", "x/A.mkv"], "x/A.mkv"),
    ("A.mp4", ["data"], ["x/a.mp4"], "x/a.mp4"),
    ("caf\u00e9.mp4", ["data"], ["data/cafe\u0301.mp4"], "data/cafe\u0301.mp4"),  # as macOS writes names
    ("sub/a.mp4", ["data"], ["data/sub/a.mp4"], "data/sub/a.mp4"),
    ("sub\\a.mp4", ["data"], ["data/sub/a.mp4"], "data/sub/a.mp4"),
    ("./sub/a.mp4", ["data"], ["data/a.mp4"], "data/a.mp4"),
    (" a.mp4 ", ["data"], ["data/a.mp4"], "data/a.mp4"),
    ("../a.mp4", ["data"], ["a.mp4", "data/a.mp4"], "data/a.mp4"),
    ("/etc/a.mp4", ["data"], ["data/a.mp4"], "data/a.mp4"),
    ("a.txt", ["data"], ["data/a.txt.mp4"], "data/a.txt.mp4"),
    ("pictures", ["data"], ["data/pictures/0.jpg"], "data/pictures"),
    ("pictures", ["data"], ["x/data/pictures/0.jpg"], "x/data/pictures"),
    ("gone.mp4", ["data"], ["data/a.mp4"], "data/gone.mp4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "folders", "files", "right"), LOOKUPS, ids=[f"{n}-{'+'.join(f)}" for n, _, f, _ in LOOKUPS]
)
def test_videos_are_found_by_their_stem(name, folders, files, right, tmp_path):
    assert found(name, folders, tmp_path / "root", *files) == right


def test_videos_behind_links(tmp_path):
    disk = tmp_path / "disk" / "videos"
    disk.mkdir(parents=True)
    (disk / "a.mkv").touch()
    (disk / "again").symlink_to(disk)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "disk")
    assert found("a.mp4", ["data"], root) == "linked/videos/a.mkv"


@pytest.mark.parametrize(
    "place",
    [
        "data0613",
        "video/data0613",
        "video/MVBench_data0613",
        "unpacked/of/archives",
        "video/clevrer-001",
        "video/clevrer",
    ],
)
def test_mvbench_is_read_as_its_archives_unpack(place, tmp_path):
    root = copies.mvbench(tmp_path)
    for folder in ("clevrer/video_validation", "star/Charades_v1_480", "tvqa/frames_fps3_hq"):
        (root / place / folder).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "video" / folder, root / place / folder)
    paths = {s.id: s.video for s in load("mvbench", root).samples}
    assert paths["moving_count-0"].path == root / place / "clevrer" / "video_validation" / "a.mp4"
    assert paths["action_sequence-0"].path == root / place / "star" / "Charades_v1_480" / "long.mp4"
    assert (paths["action_sequence-0"].start, paths["action_sequence-0"].end) == (2.0, 3.0)
    assert paths["episodic_reasoning-0"].path == root / place / "tvqa" / "frames_fps3_hq" / "pictures"
    assert paths["episodic_reasoning-0"].fps == 3.0


def test_mvbench_in_folders_one_deeper_or_of_other_names(tmp_path):
    root = copies.mvbench(tmp_path)
    shutil.move(root / "video" / "clevrer" / "video_validation", root / "video" / "clevrer" / "validation")
    whole = root / "video" / "star" / "Charades_v1_480"
    shutil.move(whole, root / "video" / "kept")
    shutil.move(root / "video" / "kept", whole / "Charades_v1_480")
    samples = {s.id: s.video for s in load("mvbench", root).samples}
    assert samples["moving_count-0"].path == root / "video" / "clevrer" / "validation" / "a.mp4"
    assert samples["action_sequence-0"].path == whole / "Charades_v1_480" / "long.mp4"
    # A video of the same name of another source is another video.
    copies.clip(root / "video" / "perception" / "videos" / "gone.mp4", seconds=1)
    assert not {s.id: s.video for s in load("mvbench", root).samples}["moving_count-1"].path.exists()
    cut = root / "elsewhere" / "star" / "Charades_segment" / "inner"
    copies.clip(cut / "long.mp4", seconds=1)
    shutil.rmtree(whole)
    clip = {s.id: s.video for s in load("mvbench", root).samples}["action_sequence-0"]
    assert (clip.path, clip.start, clip.end) == (cut / "long.mp4", None, None)


@pytest.mark.parametrize("reader", ["videomme", "mlvu_dev", "mlvu_test", "longvideobench", "egoschema", "ssv2"])
def test_videos_of_every_reader_are_found_elsewhere(reader, tmp_path):
    root = getattr(copies, reader)(tmp_path)
    before = [path.stem for path in clips_of(reader, root) if path.exists()]
    assert before
    for path in clips_of(reader, root):
        if path.exists():
            target = root / "all my videos" / "chunk_1" / f"{path.stem}.WEBM"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
    paths = [path for path in clips_of(reader, root) if path.exists()]
    assert [path.stem for path in paths] == before
    assert {path.parent.name for path in paths} == {"chunk_1"}


def test_options_without_letters_are_asked_with_them(tmp_path):
    root = copies.videomme(tmp_path)
    table = root / "videomme" / "test-00000-of-00001.parquet"
    before = [(s.prompt, s.options) for s in load("videomme", root).samples]
    rows = read_table(table)
    for row in rows:
        row["options"] = [option[3:] for option in row["options"]]
    copies.write_parquet(table, rows)
    assert [(s.prompt, s.options) for s in load("videomme", root).samples] == before


def test_texts_that_look_like_labels_keep_their_places(tmp_path):
    root = copies.mvbench(tmp_path)
    table = root / "json" / "moving_count.json"
    rows = read_table(table)
    rows[0] |= {"candidates": ["A. B. Jones", "B. A. Smith"], "answer": "B. A. Smith"}
    copies.write_json(table, rows)
    benchmark = load("mvbench", root)
    (sample,) = [sample for sample in benchmark.samples if sample.id == "moving_count-0"]
    assert (sample.options, sample.answer) == (("B. Jones", "A. Smith"), "B")
    assert [benchmark.extract(response, sample) for response in ("A. Smith", "(B)", "B. Jones")] == ["B", "B", "A"]


def test_nothing_is_said_of_a_good_copy(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load("mvbench", copies.mvbench(tmp_path))
    assert caplog.text == ""
