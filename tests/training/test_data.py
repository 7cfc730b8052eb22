"""Samples in Video-R1's schema from files and `datasets`, what becomes of them, and the filter of questions that need no video."""

import json
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.prompt import stack_prompts
from cacovid_hf.tiny import clips, model_path
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.training.batches import HeaderCollator, SampleBatches, SampleLoader, SampleReader, is_stream
from cacovid_hf.training.data import AnswerCollator, VideoQuestions, question_text, right_answer
from cacovid_hf.training.filter import blind_filter
from cacovid_hf.training.judge import answer_questions, judge
from cacovid_hf.training.question import Question
from cacovid_hf.training.rewards import REWARDS, SCORED_REWARDS, Completion

CLIP = clips()[0]
SAMPLES = [
    {
        "problem": q.text,
        "solution": f"<answer>{q.answer}</answer>",
        "problem_type": "multiple choice",
        "path": c.path.name,
    }
    for c in clips()
    for q in c.questions[:2]
]


@pytest.fixture(scope="module")
def processor():
    return with_video_reader(AutoProcessor.from_pretrained(model_path()))


@pytest.fixture(scope="module")
def model():
    return CaCoVidForConditionalGeneration.from_pretrained(model_path()).eval()


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_files_of_samples(tmp_path, suffix):
    file = tmp_path / f"samples.{suffix}"
    text = json.dumps(SAMPLES) if suffix == "json" else "\n\n".join(map(json.dumps, SAMPLES))
    file.write_text(text + "\n", encoding="utf-8")
    data = VideoQuestions(file)
    assert not is_stream(data)
    assert [data[index] for index in range(len(data))] == SAMPLES
    assert data[len(data) - 1] == SAMPLES[-1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_of_lines_only_their_places_are_kept(tmp_path):
    file = tmp_path / "samples.jsonl"
    with open(file, "w", encoding="utf-8") as lines:
        for number in range(20_000):
            lines.write(json.dumps({"problem": f"é {number}", "solution": "x" * 100}, ensure_ascii=False) + "\n")
    data = VideoQuestions(file)
    assert data.samples is None
    assert data.places.itemsize * len(data.places) < file.stat().st_size / 10
    assert [data[number]["problem"] for number in (0, 13_579, 19_999)] == ["é 0", "é 13579", "é 19999"]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_columns_get_other_names(tmp_path, suffix):
    samples = [{"question": "What?", "solution": "red", "path": "a.mp4"}]
    file = tmp_path / f"samples.{suffix}"
    file.write_text(json.dumps(samples if suffix == "json" else samples[0]))
    assert VideoQuestions(file, {"question": "problem"})[0] == {"problem": "What?", "solution": "red", "path": "a.mp4"}


BAD_FILES = [
    ("", "has no samples"),
    ("[1, 2]", "something else than JSON objects"),
    ("[{]", "is not JSON"),
    ("[]", "has no samples"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "samples.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        VideoQuestions(file)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        VideoQuestions(tmp_path / "missing.json")


def test_questions_as_they_are_asked():
    sample = {"problem": "What is it?", "options": ["A. dog", "B. cat"], "problem_type": "multiple choice"}
    assert question_text(sample).splitlines()[:3] == ["What is it?", "A. dog", "B. cat"]
    assert "option's letter" in question_text(sample)
    assert question_text({"problem": "What is it?", "problem_type": "multiple choice"}) == "What is it?"
    assert question_text({"problem": "How many?", "problem_type": "numerical", "options": []}).endswith(
        "a single number."
    )
    assert question_text({"problem": "Why?", "problem_type": "free-form"}) == "Why?"
    by_letter = {**sample, "options": {"A": "dog", "B": "cat"}}
    assert question_text(by_letter) == question_text(sample)
    assert question_text({**sample, "options": {"A": "dog", "B": "cat", "C": None}}) == question_text(sample)
    assert question_text({**sample, "options": {"A": None}}) == "What is it?"
    for one_line in ("A. dog B. cat", "(A) dog, (B) cat", "['dog', 'cat']", ["A. dog B. cat"]):
        assert question_text({**sample, "options": one_line}) == question_text(sample)
    assert question_text({**sample, "options": "dog or cat"}).splitlines()[1] == "dog or cat"


@pytest.mark.parametrize("options", ["A. dog B. cat", "['dog', 'cat']", ["dog", "cat"]], ids=str)
def test_the_solution_is_read_by_the_rule_of_the_evaluation(options):
    sample = {"problem": "What is it?", "options": options}
    for solution in ("B", "I choose B", "The answer is cat", "'B' is correct", "<think>A</think><answer>cat</answer>"):
        assert right_answer({**sample, "solution": solution}) == "B"
    for solution in ("C", "cow", "Both A and B", "A. cat"):
        with pytest.raises(ValueError, match="the answer"):
            right_answer({**sample, "solution": solution})


def test_a_list_that_cannot_be_read_says_so(processor):
    batch = AnswerCollator(processor)([{**SAMPLES[0], "path": str(CLIP.path), "options": "['red', 'green'"}])
    assert "are not a list that can be read: write them as JSON, or one per line" in batch["skipped"][0]


def test_a_written_answer_is_judged_with_its_options(processor):
    """The text "a dog and a cat" names both, which only the options tell."""
    sample = {"problem": "What is it?", "options": "A. a dog B. a cat", "solution": "B", "path": str(CLIP.path)}
    batch = AnswerCollator(processor, scored_types=())([sample])
    (question,) = pickle.loads(pickle.dumps(batch["questions"]))  # as a loader's worker gives it
    assert question.solution == "B. a cat"
    texts = ["The answer is a cat.", "It shows a cat", "a dog and a cat", "Both A and B", "A. a cat"]
    assert judge([Completion(text) for text in texts], [question] * 5, REWARDS).tolist() == [1, 1, 0, 0, 0]


def test_samples_become_prompts_and_the_bad_ones_a_reason(tmp_path, processor):
    (tmp_path / "broken.mp4").write_bytes(CLIP.path.read_bytes()[:2000])
    samples = [
        {**SAMPLES[0], "path": str(CLIP.path)},
        {**SAMPLES[0], "path": "broken.mp4"},
        {**SAMPLES[0], "path": "missing.mp4"},
        {**SAMPLES[0], "path": str(CLIP.path), "problem_type": "riddle"},
        {**SAMPLES[0], "path": str(CLIP.path), "solution": "<answer></answer>"},
        {**SAMPLES[0], "path": str(CLIP.path), "data_type": "image"},
        {"problem_id": 7, "problem": "What?", "solution": "red"},
        {**SAMPLES[1], "video": {"path": None, "bytes": CLIP.path.read_bytes()}},
        {**SAMPLES[1], "path": str(CLIP.path), "problem_type": "OCR"},
    ]
    batch = AnswerCollator(processor, root=tmp_path, allowed_roots=[CLIP.path.parent])(samples)
    assert batch["places"] == [0, 7, 8]
    assert [question.problem_type for question in batch["questions"]] == ["multiple choice", "multiple choice", "OCR"]
    expected = processor.tokenizer.convert_tokens_to_ids(CLIP.questions[0].answer)
    assert batch["questions"][0].answer.tolist() == [expected]
    assert batch["questions"][0].solution == CLIP.questions[0].answer
    assert batch["questions"][2].answer is None
    (inputs,) = batch["inputs"]
    assert inputs["pixel_values_videos"].shape[:2] == (3, 8)
    reasons = ["broken.mp4", "missing.mp4", "riddle", "no tokens", "is not a video", "neither video nor path"]
    assert len(batch["skipped"]) == len(reasons)
    for reason, words in zip(batch["skipped"], reasons, strict=True):
        assert words in reason
    assert batch["skipped"][-1].startswith("7: ")


ODD = [
    ({"path": 5}, "shape ()"),
    ({"video": {}}, "shape ()"),
    ({"video": {"path": None, "bytes": None}}, "shape ()"),
    ({"video": b"no video"}, "not a readable video"),
    ({"video": np.zeros((84, 84), np.uint8)}, "shape (84, 84)"),
    ({"video": np.zeros((0, 84, 84, 3), np.uint8)}, "shape (0, 84, 84, 3)"),
    ({"video": np.array(["a"])}, "shape (1,)"),
    ({"options": 3}, "options=3 is of type int: give a list of texts"),
    ({"problem_type": ["OCR"]}, "unhashable"),
    ({"problem": "What is <image> ?"}, "<image>"),
    ([1], "the sample is a list"),
]


@pytest.mark.parametrize(("odd", "reason"), ODD, ids=[f"{odd!r:.40}" for odd, _ in ODD])
def test_no_sample_is_fatal(odd, reason, processor):
    good = {**SAMPLES[0], "path": str(CLIP.path)}
    batch = AnswerCollator(processor)([{**good, **odd} if isinstance(odd, dict) else odd, good])
    assert batch["places"] == [1]
    assert reason in batch["skipped"][0]


@pytest.mark.parametrize(
    "sample",
    [
        {"video": None, "path": str(CLIP.path), "problem_type": None, "data_type": None, "options": None},
        {"video": CLIP.path.read_bytes(), "path": None},
        {"video": {"path": str(CLIP.path), "bytes": None}, "options": "A. one"},
    ],
    ids=["a table's empty cells", "bytes", "one option"],
)
def test_samples_that_are_fine(sample, processor):
    batch = AnswerCollator(processor)([{**SAMPLES[0], **sample}])
    assert batch["places"] == [0]
    assert batch["questions"][0].problem_type == "multiple choice"


def test_no_frames_are_no_setting(processor):
    with pytest.raises(ValueError, match="num_frames=0 leaves nothing to see"):
        AnswerCollator(processor, num_frames=0)


@pytest.mark.parametrize("judged", [[1.0, float("nan")], [1.0], [None, 1.0], None, [[1.0, 1.0]]], ids=str)
def test_a_reward_that_gives_no_numbers_is_told(judged, processor, model):
    samples = [{**QuestionDataset(2)[n], "problem_type": "OCR"} for n in range(2)]
    batch = AnswerCollator(processor, instructions={})(samples)
    prompt = model.compress_prompt(model.embed(**batch["inputs"][0]), retention_ratio=0.1)
    completions = answer_questions(model.backbone, processor, prompt, batch["questions"], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"The reward of 'OCR' gave .* for 2 answers. Return a list of one finite"):
        judge(completions, batch["questions"], {**REWARDS, "OCR": lambda texts, _: judged})


def test_a_shape_that_the_processor_refuses(processor):
    class Picky(AnswerCollator):
        def _prompts(self, frames, metadata, texts):
            if any("circle" in text for text in texts):
                raise ValueError("no circles")
            return super()._prompts(frames, metadata, texts)

    samples = [
        {**SAMPLES[0], "path": str(CLIP.path), "problem": f"What color is the {it}?"}
        for it in ("moon", "circle", "ring")
    ]
    batch = Picky(processor)(samples)
    assert batch["places"] == [0, 2]
    assert len(batch["inputs"]) == len(batch["questions"]) == 2
    assert batch["skipped"] == [f"{CLIP.path}: no circles"]


def test_all_samples_may_be_bad(processor):
    batch = AnswerCollator(processor)([{**SAMPLES[0], "path": "missing.mp4"}])
    assert batch["inputs"] == batch["questions"] == batch["places"] == []
    assert len(batch["skipped"]) == 1


def test_videos_of_several_lengths_share_a_batch(processor, model):
    whole = QuestionDataset(3)
    samples = [whole[0], {**whole[1], "video": whole[1]["video"][:4]}, whole[2]]
    collate = AnswerCollator(processor)
    batch = collate(samples)
    assert batch["places"] == [0, 2, 1]
    assert [len(part["input_ids"]) for part in batch["inputs"]] == [2, 1]
    prompt = stack_prompts([model.embed(**part) for part in batch["inputs"]])
    assert [span.grid for span in prompt.layout.videos] == [(8, 6, 6), (8, 6, 6), (4, 6, 6)]
    for row, place in enumerate(batch["places"]):
        alone = model.compress_prompt(model.embed(**collate([samples[place]])["inputs"][0]), retention_ratio=0.25)
        together = model.compress_prompt(prompt, retention_ratio=0.25)
        valid = together.attention_mask[row].bool()
        torch.testing.assert_close(together.inputs_embeds[row][valid], alone.inputs_embeds[0])
        assert torch.equal(together.position_ids[row][valid], alone.position_ids[0])


def length(completions, solutions):
    return [float(len(completion)) for completion in completions]


def test_open_and_closed_answers_of_one_batch(processor, model):
    samples = [
        {**QuestionDataset(6)[n], "problem_type": kind}
        for n, kind in enumerate(["multiple choice", "OCR", "free-form"])
    ]
    samples.append({**samples[0], "solution": "purple" if samples[0]["solution"] == "red" else "red"})
    collate = AnswerCollator(processor, instructions={})  # whose words the tiny model does not know
    batch = collate(samples)
    prompt = model.compress_prompt(model.embed(**batch["inputs"][0]), retention_ratio=1.0)
    completions = answer_questions(model.backbone, processor, prompt, batch["questions"], max_new_tokens=4)
    assert completions == [*(question.solution for question in batch["questions"][:3]), batch["questions"][0].solution]
    assert [completion.probability is None for completion in completions] == [False, True, True, False]
    rewards = judge(completions, batch["questions"], REWARDS).tolist()
    # Right in all three ways; ROUGE of a single right word is 2/3.
    assert rewards == pytest.approx([1.0, 1.0, 2 / 3, 0.0])
    dense = judge(completions, batch["questions"], REWARDS, SCORED_REWARDS["probability"]).tolist()
    assert 0.5 < dense[0] < 1.0
    assert dense[1:3] == pytest.approx(rewards[1:3])
    assert 0.0 < dense[3] < 0.1
    lengths = judge(completions, batch["questions"], {**REWARDS, "OCR": length}, length).tolist()
    # One function for generated and for scored answers; the last is what the model said, not the solution.
    assert lengths == [len(completions[0]), len(completions[1]), pytest.approx(2 / 3), len(completions[3])]


def test_datasets_of_both_kinds(processor, tmp_path):
    datasets = pytest.importorskip("datasets")
    samples = [{**sample, "path": str(CLIP.path)} for sample in SAMPLES[:4]]
    table = datasets.Dataset.from_list(samples)
    assert not is_stream(table)
    stream = table.to_iterable_dataset()
    assert is_stream(stream)
    batches = [AnswerCollator(processor)(list(data)[:2]) for data in (table, stream)]
    assert all(batch["places"] == [0, 1] for batch in batches)
    ids = [batch["inputs"][0]["input_ids"] for batch in batches]
    assert torch.equal(*ids)


def test_questions_that_need_no_video_are_left_out(processor, model, tmp_path):
    samples = [
        {"problem_id": number, "problem": q.text, "solution": q.answer, "problem_type": kind, "path": "never opened"}
        for number, (q, kind) in enumerate(
            (question, kind) for question, kind in zip(CLIP.questions * 4, ["multiple choice", "OCR"] * 12, strict=True)
        )
    ]
    collate = AnswerCollator(processor, blind=True)
    batch = collate(samples)
    (inputs,) = batch["inputs"]
    assert not any("pixel" in name for name in inputs)
    ids = model.backbone.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    answers = processor.tokenizer.convert_ids_to_tokens(ids)
    # Half of the solutions are what the model says without a video.
    for sample, answer in list(zip(samples, answers, strict=True))[:12]:
        sample["solution"] = answer
    right = [sample for sample, answer in zip(samples, answers, strict=True) if sample["solution"] == answer]
    assert 12 <= len(right) < 24
    samples.append({"problem": "What?", "problem_type": "OCR"})
    out = tmp_path / "kept.jsonl"
    summary = blind_filter(model, processor, samples, out, batch_size=5, max_new_tokens=1)
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept == [sample for sample in samples[:-1] if sample not in right]
    assert (summary.total, summary.kept, sum(summary.answered.values())) == (25, 24 - len(right), len(right))
    assert summary.answered["OCR"] >= 6
    assert sum(summary.skipped.values()) == 1
    written = json.loads((tmp_path / "kept.jsonl.summary.json").read_text())
    assert written["kept"] == len(kept)
    with pytest.raises(FileExistsError, match="choose another name"):
        blind_filter(model, processor, samples, out)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["kept.jsonl", "kept.jsonl.summary.json"]


class Endless(torch.utils.data.IterableDataset):
    """Every second sample is no question."""

    def __iter__(self):
        good = {"problem": CLIP.questions[0].text, "solution": "no word of its", "problem_type": "OCR", "path": "x"}
        while True:
            yield good
            yield {"problem": "What?", "problem_type": "OCR"}


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_limit_nothing_is_counted_beyond(stream, processor, model, tmp_path):
    samples = Endless() if stream else list(islice(Endless(), 40))
    summary = blind_filter(model, processor, samples, tmp_path / "few.jsonl", batch_size=5, max_new_tokens=1, limit=7)
    assert (summary.total, summary.kept, sum(summary.skipped.values())) == (7, 4, 3)
    assert len((tmp_path / "few.jsonl").read_text().splitlines()) == 4


def test_a_question_that_the_processor_refuses_is_filtered_out_alone(processor, model, tmp_path):
    samples = [
        {
            "problem": text,
            "solution": "no word of its",
            "problem_type": "OCR",
            "path": "never opened",
            "note": "é \ud800",
        }
        for text in (CLIP.questions[0].text, "What is <image> ?", CLIP.questions[1].text)
    ]
    summary = blind_filter(model, processor, samples, tmp_path / "kept.jsonl", max_new_tokens=1)
    assert (summary.total, summary.kept, sum(summary.skipped.values())) == (3, 2, 1)
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert kept == [samples[0], samples[2]]


@pytest.mark.slow
def test_a_worker_reads_the_same(processor, tmp_path):
    samples = [{**sample, "path": str(CLIP.path)} for sample in SAMPLES[:3]]
    batches = []
    for workers in (0, 1):
        loader = SampleLoader(
            SampleReader(samples),
            batch_sampler=SampleBatches(samples, batch_size=2, repeats=2),
            collate_fn=HeaderCollator(AnswerCollator(processor)),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        batches.append(list(loader))
    assert [batch["header"] for batch in batches[0]] == [batch["header"] for batch in batches[1]]
    assert len(batches[0]) == 4
    for one, other in zip(*batches, strict=True):
        assert len(one.get("questions", ())) == len(other.get("questions", ()))
        for ours, theirs in zip(one.get("inputs", ()), other.get("inputs", ()), strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_frames_may_be_given_as_they_are(processor):
    frames = np.zeros((8, 84, 84, 3), dtype=np.uint8)
    batch = AnswerCollator(processor)([{"problem": "What is it?", "solution": "red", "video": frames}])
    assert batch["questions"] == [Question("red", "multiple choice", batch["questions"][0].answer)]
