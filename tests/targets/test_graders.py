"""Graders on answers as models write them."""

import time

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from routerjax.targets.graders import TEXT_GRADERS, agreement, choice_in, normalised, number_in
from routerjax.targets.judge import score_in


def right(name, answer, reference):
    grader = TEXT_GRADERS[name]
    return grader.is_right(answer, grader.prepare(reference))


@pytest.mark.parametrize(
    ("answer", "reference", "is_right"),
    [
        ("42", "42", True),
        ("So 6 x 7 = 42.", "42", True),
        ("The answer is 42, not 43.", "42", True),
        ("First 3, then 4.\n#### 1,234", "1234", True),
        (r"Thus $\boxed{\frac{3}{4}}$ of 12", "0.75", True),
        (r"\boxed{1{,}000}", "1000", True),
        ("$1,234.50", "1234.5", True),
        ("It costs 5-3 = 2", "2", True),
        ("x = −7", "-7", True),
        ("The answer to part 2 is 15.", "15", True),
        ("The answer is 2 * 3 = 6. I used 3 twice", "6", True),
        (r"\boxed{x = 5}", "5", True),
        ("**Answer:** 7 apples, 3 pears", "7", True),
        ("The answer is:\n\n9", "9", True),
        ("The answer is simple. 3 of 4 give 12", "12", True),
        ("about 0.3333333", "1/3", True),
        ("3.14", "3.14159", False),
        ("1234567", "1234568", False),
        ("100000000000000000001", "100000000000000000000", False),
        ("1e3", "1000", True),
        ("12", "2", False),
        ("I cannot say.", "0", False),
        ("", "0", False),
        ("9" * 5000, "9", False),
        ("1e999", "1", False),
    ],
)
def test_numbers(answer, reference, is_right):
    assert right("numeric", answer, reference) == is_right


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B. It is prime.", "B"),
        ("B) 7", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) 7.", "B"),
        ("Answer: **C**", "C"),
        ("A is too small, so the correct answer is: D", "D"),
        ("At first I chose option A. The answer is C", "C"),
        (r"$\boxed{\text{E}}$", "E"),
        (r"\boxed{(F)}", "F"),
        ("Long thought.\n\nG", "G"),
        ("Neither (A) nor (C): rather (D)", "D"),
        ("The answer is C. Option A is wrong, as it is odd.", "C"),
        ("The best answer to the question is (C), since choice B is odd.", "C"),
        ("I would take option **B**.", "B"),
        (r"The answer is $\mathbf{B}$.", "B"),
        ("**Answer:**\n\nC", "C"),
        ("The answer must be B because A is odd", "B"),
        ("The answer is I think unclear", None),
        ("A train leaves", None),
        ("The answer is a train", None),
        ("", None),
    ],
)
def test_letters(answer, letter):
    assert choice_in(answer) == letter


@pytest.mark.parametrize(
    ("name", "answer", "reference", "is_right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("normalised", "The  PARIS!", "paris", True),
        ("normalised", "ﬁne", "fine", True),
        ("normalised", "-5", "5", False),
        ("normalised", "3.5", "35", False),
        ("normalised", "A", "a", True),
        ("normalised", "", "a", False),
        ("regex", "It was in 1969, in July", r"\b19(69|70)\b", True),
        ("regex", "in 1971", r"\b19(69|70)\b", False),
        ("choice", "(c)", "C", True),
        ("choice", "none", "C", False),
    ],
)
def test_texts(name, answer, reference, is_right):
    assert right(name, answer, reference) == is_right


@pytest.mark.parametrize(
    ("name", "reference", "message"),
    [
        ("numeric", "many", "expected a number, got 'many'"),
        ("choice", "Paris", "expected a letter from A to J, got 'Paris'"),
        ("regex", "(", "expected a regular expression"),
        ("normalised", "!", "expected a text with a letter or number"),
    ],
)
def test_references_are_checked(name, reference, message):
    with pytest.raises(ValueError, match=message):
        TEXT_GRADERS[name].prepare(reference)


@pytest.mark.parametrize("name", ["numeric", "choice", "normalised"])
@pytest.mark.parametrize(
    "text", ["answer" + " " * 50_000 + "?", "answer is: " * 5_000, "1," * 20_000, "\\boxed{" * 500]
)
def test_long_answers_take_no_time(name, text):
    start = time.perf_counter()
    right(name, text, "A" if name == "choice" else "17")
    assert time.perf_counter() - start < 2


def test_numbers_and_texts_are_found():
    assert number_in("no digits") is None and number_in("1/2") * 2 == 1
    assert normalised("It's  the U.S.") == "its the u s"


def test_scores_of_a_judge():
    assert score_in("Score: 0.2\nor rather\nScore: 1") == 1
    assert score_in("**Score**: `0.75`") == 0.75
    assert score_in("Score (from 0 to 1): 0.5/1") == 0.5
    assert [score_in(t) for t in ("Score: 7", "fine", "Score: high")] == [None] * 3


def test_agreement_is_cohens_kappa():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 200)
    b = np.where(rng.random(200) < 0.8, a, 1 - a)
    found = agreement(list(zip(a.tolist(), b.tolist(), strict=True)))
    assert found["n"] == 200 and found["agree"] == (a == b).mean()
    assert found["kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert agreement([(1, 1), (0.5, 0.9)]) == {"n": 2, "agree": 1.0, "kappa": None}
