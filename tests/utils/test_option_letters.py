"""One rule for option letters: in evaluation, in rewards, and for the answers of data sets."""

import pytest

from cacovid_hf.training.rewards import Solution, multiple_choice_reward
from cacovid_hf.utils.answer_tags import final_answer
from cacovid_hf.utils.option_letters import extract_choice, right_letter
from cacovid_hf.utils.options import index_letter, read_options

OPTIONS = ["a blue car", "a red car", "a dog", "a cat"]

LISTED = "A. a blue car\nB. a red car\nC. a dog\nD. a cat"  # as models repeat them
# Responses that choose B, and one of each that does not.
CHOOSE_B = [
    "<think>(A) is blue, (D) purrs. Is it C?</think><answer>B</answer>",
    "<think>(A) is blue. Is it C?</think>B",
    "<think>The answer is A</think>\n\n**B**",
    "is it (A) or (C)? The answer is C. </think> <answer>B</answer>",  # the prompt opens the thinking
    "<think>\n<think>(C)?</think> B",
    "<think>one <think>(A)</think> two, so C</think> B",
    "<think>(C)</think> B <think>why (A)?</think>",
    "B <think>why not C",  # cut off
    "<think>(C), <answer>B</answer>",
    "<think><answer>C</answer>? No.</think><answer>B</answer>",
    "<answer>C</answer> no, <answer>B</answer>",
    "<answer>B</answer> (C) is wrong",
    "<answer>B",
    "B</answer>",
    "<answer>B<answer>",
    "<ANSWER> b </ANSWER>",
    "< answer >(b)< /answer >",
    "<answer>B. a red car</answer>",
    "<thinking>C</thinking><answer>\\boxed{B}</answer>",
    "C. is wrong, \\boxed{B}",
    "So (C) is out: $\\boxed{\\text{B}}$",
    "\\boxed{\\mathbf{(b)}}",
    "\\boxed{B. a red car}",
    "\\boxed{B",
    "Answer: B",
    "Answer - B",
    "**Final Answer**: B",
    "**Answer:** **B**",
    '{"answer": "B"}',
    "Ans: b",
    "answer=B",
    "The answer is **b**.",
    "The correct letter is B",
    "I choose B",
    "__B__",
    "_B_",
    "`b`",
    "### B",
    "b",
    "(b)",
    "[B]",
    "b)",
    "B)",
    "It is (b)",
    "\uff22",
    "\uff42\uff0e",
    "\uff08\uff22\uff09",
    "\uff08\uff22\uff09 a red car",
    "\u3010B\u3011",
    "\u7b54\u6848\uff1aB",
    "\u7b54\u6848\u662f\uff22\u3002",
    "\u9009B\uff0c\u56e0\u4e3a",
    "B\u3001a red car",
    "Answer\uff1aB",
    "(B) a red car",
    "B: a red car",
    "B - a red car",
    "B a red car",
    "Option B",
    "It is B.",
    "b is the answer",
    "(C) is wrong. (B) is right.",
    "(A) is wrong. The answer is (B). (C) is wrong too.",
    "A is not right; B is the best",
    "'B' is correct",
    "\u201cB\u201d is the right one",
    "I would go with B over (A)",
    "\u200bB",
    "B\ufeff",
    "The answer is\u200b \u200bB",
    "Between A and B, I choose B.",
    "A and C are wrong, so the answer is B",
    "B, A is wrong",
    "B\nA is wrong",
    "B A red car",
    "Neither A nor C but B",
    "Not A; B",
    "B rather than A",
    "All of A, C and D are wrong: B",
    "The answer is B, and A shows a dog",
    "B or not B? B.",
    "It is not A. B",
    f"{LISTED}\nAnswer: B",
    f"{LISTED}\n\nB",
    f"{LISTED}\n\nThe answer is (B), not (C).",
    "**A. a blue car**\n\n**B. a red car**\n\n**C. a dog**\n\n**B**",
    "a) a blue car b) a red car c) a dog d) a cat. The answer is B.",
    "(A) no. (B) is correct. (C) no.",
    f"<answer>{LISTED}\nAnswer: B</answer>",
]
TEXTS_OF_B = [
    "The answer is a red car.",
    "I think it's a red car",
    "So the correct option is: **a red car**",
    "It is a r\u200bed car",
    "a red car",
    "A red car.",
    "A RED CAR",
    '"a red car"',
    "a  red\ncar",
    "<answer>a red car</answer>",
]
CHOOSE_NOTHING = [
    "<think>(A) or (C)? The answer is B",
    "<think>B</think>",
    "<answer></answer>",
    "",
    "I do not know",
    "<think>B</think><answer> </answer>",
    "Both A and B",
    "A and B",
    "A, B",
    "A, B and C",
    "(A) and (B)",
    "(A), (B)",
    "A/B",
    "A & B",
    "A-B",
    "A | B",
    "A B",
    "(A)(B)",
    "A and also C",
    "A as well as C",
    "A or B",
    "a, b",
    "Option A or option B",
    "The answer is A or B.",
    "<answer>A, B</answer>",
    "\\boxed{A, B}",
    "Neither A nor B",
    "not B",
    "It isn't B",
    "A\u3001B",
    "B \u548c C",
    LISTED,
    "A. No. B. No. C. Yes",
    "(A) yes\n(B) no\n(C) no\n(D) no",
    "U.S.A",
]


@pytest.mark.parametrize("response", CHOOSE_B)
def test_evaluation_and_reward_read_the_same_letter(response):
    assert extract_choice(response, OPTIONS) == "B"
    assert multiple_choice_reward([response] * 2, ["B", "C"]) == [1.0, 0.0]


@pytest.mark.parametrize("response", TEXTS_OF_B)
def test_an_options_text_is_as_good_as_its_letter(response):
    assert extract_choice(response, OPTIONS) == "B"
    assert multiple_choice_reward([response] * 3, ["B. a red car", "(B) a red car", "C. a dog"]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "response", [*CHOOSE_B, *TEXTS_OF_B, *CHOOSE_NOTHING, "a blue car or a dog", "It shows a red car", "A", "(D)"]
)
def test_a_reward_that_knows_the_options_reads_as_the_evaluation(response):
    letters = dict(zip("ABCD", OPTIONS, strict=True))
    solutions = [Solution(f"{letter}. {text}", letters) for letter, text in letters.items()]
    chosen = extract_choice(response, OPTIONS)
    assert multiple_choice_reward([response] * 4, solutions) == [float(chosen == letter) for letter in letters]


@pytest.mark.parametrize("response", CHOOSE_NOTHING)
def test_no_choice(response):
    assert extract_choice(response, OPTIONS) == ""
    assert multiple_choice_reward([response], ["B"]) == [0.0]


@pytest.mark.parametrize(
    "response",
    ["A. The car is blue, unlike B. C is a dog.", "A. a blue car, not B. or C.", "A. a blue car\nB. is red", "A. a blue car\n\nIt is.\n\nB. no\nC. no"],
)  # fmt: skip
def test_a_reason_behind_the_letter_is_no_list(response):
    assert extract_choice(response, OPTIONS) == "A"


def test_long_texts_take_no_longer():
    """Each is a megabyte, on which a search that goes back would never end."""
    for text in (
        "<think>" * 150_000,
        "<answer>" * 125_000,
        "\\boxed{" * 140_000,
        "(" * 1_000_000,
        " " * 1_000_000 + "x",
    ):
        final_answer(text)
        read_options([text, "b"])
    for text in (
        "A and " * 20_000,
        "the answer is " * 20_000,
        "I choose " * 20_000,
        "A. x B. " * 20_000,
        "['a' " * 20_000,
    ):
        extract_choice(text, OPTIONS)
        with pytest.raises(ValueError, match=r"is not an option|1 options|not a list"):
            right_letter(text, read_options(text))


ALL_FORMS = [
    ["red", "blue", "green"],
    ["A. red", "B. blue", "C. green"],
    ["(A) red", "(B) blue", "(C) green"],
    ["a) red", "b) blue", "c) green"],
    ["A: red", "B: blue", "C: green"],
    ["A - red", "B - blue", "C - green"],
    ["[A] red", "[B] blue", "[C] green"],
    ["A.red", "B.blue", "C.green"],
    ["A red", "B blue", "C green"],
    ["\uff21\uff0e red", "\uff22\uff0e blue", "\uff23\uff0e green"],
    ["\uff08A\uff09red", "\uff08B\uff09blue", "\uff08C\uff09green"],
    ["A\u3001red", "B\u3001blue", "C\u3001green"],
    ["B. blue", "A. red", "C. green"],
    {"A": "red", "B": "blue", "C": "green"},
    {"C": "green", "A": "red", "B": "blue"},
    {"a": "red", "b": "blue", "c": "green"},
    {"A": "A. red", "B": "B. blue", "C": "C. green"},
    {"A": "red", "B": "blue", "C": "green", "D": None},
    {"(A)": "red", "(B)": "blue", "(C)": "green"},
    {"0": "red", "1": "blue", "2": "green"},
    {1: "red", 2: "blue", 3: "green"},
    {"option 0": "red", "option 1": "blue", "option 2": "green"},
    {"option_a": "red", "option_b": "blue", "option_c": "green"},
    {"label": ["A", "B", "C"], "text": ["red", "blue", "green"]},
    [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}, {"label": "C", "text": "green"}],
    [{"A": "red"}, {"B": "blue"}, {"C": "green"}],
    [{"text": "red"}, {"text": "blue"}, {"text": "green"}],
    [{"id": 0, "value": "red"}, {"id": 1, "value": "blue"}, {"id": 2, "value": "green"}],
    ("red", "blue", "green", None, None),
    "A. red\nB. blue\r\nC. green\n",
    '["red", "blue", "green"]',
    "['red', 'blue', 'green']",
    "('red', 'blue', 'green')",
    "{'A': 'red', 'B': 'blue', 'C': 'green'}",
    "['red' 'blue' 'green']",  # as numpy prints it
    "array(['red', 'blue', 'green'], dtype=object)",
    "['A. red', 'B. blue', 'C. green']",
    "A. red B. blue C. green",
    "A.red B.blue C.green",
    "(A) red (B) blue (C) green",
    "(A) red, (B) blue, (C) green",
    "A) red; B) blue; C) green",
    "A: red | B: blue | C: green",
    "A - red B - blue C - green",
    "a) red b) blue c) green",
    "[A] red [B] blue [C] green",
    "\uff21\uff0ered \uff22\uff0eblue \uff23\uff0egreen",
    "A. red B. blue\nC. green",
    ["A. red B. blue C. green"],
    "\ufeffA. red\nB. blue\nC. green",
    ["\u200bA. red", "\u200bB. blue", "C. green\u200b"],
    ["\u200bred", "blue\ufeff", "green\u3000"],
]


@pytest.mark.parametrize("options", ALL_FORMS, ids=lambda options: f"{options!r:.40}")
def test_forms_of_options(options):
    assert read_options(options) == {"A": "red", "B": "blue", "C": "green"}


def test_what_looks_like_a_letter_and_is_a_text():
    for texts in (
        ["E. coli", "S. aureus"],
        ["A. Milne", "J. Rowling"],
        ["A dog", "Dogs"],
        ["1.5", "2.5"],
        ["A", "B"],
        ["A.", "B."],
    ):
        assert list(read_options(texts).values()) == texts
    assert read_options("(A) vitamin B. (B) none") == {"A": "vitamin B.", "B": "none"}
    assert read_options("A. see C. below\nB. no") == {"A": "see C. below", "B": "no"}
    assert read_options("A: 10:30 B: 11:45") == {"A": "10:30", "B": "11:45"}
    assert read_options([3, 2.5, True]) == {"A": "3", "B": "2.5", "C": "True"}
    assert read_options({"A": "x", "B": None, "C": "y"}) == {"A": "x", "C": "y"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([str(i) for i in range(27)], "27 options: multiple choice needs 2 to 26"),
        (["red"], "1 options"),
        ([], "0 options"),
        (3, "options=3 is of type int: give a list of texts"),
        (["red", None, "blue"], r"options\[1\] \(None\) is not a text"),
        (["red", ["blue"]], "is not a text"),
        ([{"colour": None}, {"text": "x"}], "1 options"),
        ({"red": "x", "blue": "y"}, "name them A, B, C"),
        ({"A": "x", "a": "y"}, "the letter A twice"),
        ({"1": "x", "3": "y"}, "number them in a row"),
        (["red", "blue \ud800"], "lone surrogate"),
        ("['red', 'blue'", r"are not a list that can be read: write them as JSON, or one per line"),
        ("[red, blue]", r"are not a list that can be read: write them as JSON, or one per line"),
        ("A. vitamin A. B. vitamin B.", "1 options"),  # where B begins is not clear
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_what_are_not_options(options, reason):
    with pytest.raises(ValueError, match=reason):
        read_options(options)


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "(B)", "B.", " b ", "**B**", "\uff22", "<answer>B</answer>", "\\boxed{B}", "Option B", "The answer is B.", "(B) blue", "B. Blue",
     "I choose B", "The answer is blue", "'B' is correct", "It is blue.", "So the answer is: **Blue**", "B (blue)", "blue (B)", "B: blue, because", "\u200bB",
     "bl\u200bue", "\ufeffblue", "Answer: B. blue", "I would go with option (b)", "<answer>I think it's blue</answer>", "(B) is the right one",
     "A is wrong. The answer is B.",
     "blue", "Blue", " blue ", "blue.", "\uff42lue", "<think>A</think>blue", "<answer>\nblue\n</answer>"],
)  # fmt: skip
def test_the_right_answer_by_letter_or_text(answer):
    assert right_letter(answer, read_options(["red", "blue", "dark blue"])) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "D",
        "bleu",
        "A. blue",
        "B. bleu",
        "",
        "<answer></answer>",
        2,
        True,
        None,
        ["B"],
        float("nan"),
        "AB",
        "A, B",
        "Both A and B",
        "A or B",
        "vitamin B",
        "Plan B is good",
        "a blue car",
        "The answer is A, blue",
        "not B",
        "red or blue",
        "The answer is E",
    ],
)
def test_an_answer_that_is_not_an_option_is_refused(answer):
    """Some of them a response would be read from: a gold answer with a typing error must not become another option."""
    with pytest.raises(ValueError, match="the answer"):
        right_letter(answer, read_options(["red", "blue", "dark blue"]))


def test_answers_that_may_be_two_options():
    both = {"A": "red", "B": "blue", "C": "Both A and B"}
    assert right_letter("Both A and B", both) == extract_choice("The answer is both A and B.", both) == "C"
    assert right_letter("us", {"A": "US", "B": "us"}) == "B"
    with pytest.raises(ValueError, match="fits the options A and B alike"):
        right_letter("Us", {"A": "US", "B": "us"})
    letters = {"A": "B", "B": "A"}
    with pytest.raises(ValueError, match="is the letter of option A and the text of option B"):
        right_letter("A", letters)
    assert (right_letter("A", letters, "letter"), right_letter("A", letters, "text")) == ("A", "B")
    assert right_letter("B. A", letters) == "B"
    assert right_letter(3, read_options([1, 2, 3])) == "C"
    # Who chooses one of two equal texts has chosen both.
    twice = ["red", "blue", "red"]
    assert right_letter("C", read_options(twice)) == right_letter("red", read_options(twice)) == "A"
    assert extract_choice("C", twice) == extract_choice("red", twice) == extract_choice("A", twice) == "A"


def test_answers_by_number():
    texts = read_options(["red", "blue", "green"])
    assert [index_letter(index, texts) for index in (0, "1", 2.0, "1.0")] == ["A", "B", "C", "B"]
    assert index_letter(3, texts, first=1) == "C"
    for index in (3, -1, "x", None, 0.5, "0.5", "nan", True, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the answer"):
            index_letter(index, texts)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("answer: 'D'", "D"),
        ("The answer is \u2018D\u2019", "D"),
        ("The correct option is 'B'.", "B"),
        ("I choose 'C'", "C"),
        ("{'answer': 'C'}", "C"),
        ("I'm sure of nothing", ""),
        ("The answer is A's colour", ""),
    ],
)
def test_single_quotes_are_no_apostrophes(response, letter):
    assert extract_choice(response, ["red", "green", "blue", "teal"]) == letter
