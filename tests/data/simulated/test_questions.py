"""Questions have an answer, and only one: what a text claims about itself is checked."""

import datetime
import re

import numpy as np
import pytest

from routerjax.data.simulated import numeric, reasoning, verbal
from routerjax.data.simulated.draw import Draw
from routerjax.data.simulated.words import CITIES, ITEMS, MONTHS, NAMES, WEEKDAYS, WORDS

N = 300


def _texts(write, level):
    return write(Draw(np.random.default_rng(level), N), level)


@pytest.mark.parametrize("words", [NAMES, WORDS, ITEMS, CITIES, WEEKDAYS, MONTHS])
def test_word_lists_have_no_repeats(words):
    assert len(set(words)) == len(words)


def test_words_have_five_letters_or_more():
    """Questions ask for their third letter and for their last three."""
    assert all(re.fullmatch("[a-z]{5,8}", word) for word in WORDS)


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_clues_fix_the_whole_order(level):
    size = {2: 3, 3: 5, 4: 6, 5: 7}[level]
    pattern = r"(\w+) (?:is \w+ than|sits directly to the left of) (\w+)\."
    for text in _texts(reasoning.logic, level):
        after = dict(re.findall(pattern, text))
        first = set(after) - set(after.values())
        assert len(after) == size - 1
        assert len(first) == 1
        chain = list(first)
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        assert len(set(chain)) == size


def test_both_friends_of_the_condition_sit_in_the_row():
    for text in _texts(reasoning.logic, 5):
        one, two = re.search(r"If (\w+) sits further to the left than (\w+),", text).groups()
        listed = re.search(r"Seven friends, (.*?), sit in", text).group(1)
        assert one != two
        assert {one, two} <= set(re.split(r", | and ", listed))


@pytest.mark.parametrize("level", range(6))
def test_nobody_gives_away_more_than_they_have(level):
    for text in _texts(numeric.word_problems, level):
        have = int(re.search(r"has (\d+) ", text).group(1))
        gone = sum(map(int, re.findall(r"(?:gives|loses|swaps) (\d+)", text)))
        assert gone < have


def test_the_steps_of_sequences_are_as_the_text_says():
    for text in _texts(numeric.sequences, 2):
        a, b, c, d = map(int, re.findall(r"\d+", text))
        assert b * b == a * c and c * c == b * d
    for text in _texts(numeric.sequences, 3):
        assert len(set(np.diff(list(map(int, re.findall(r"\d+", text))), 2))) == 1
    for text in _texts(numeric.sequences, 4):
        terms = list(map(int, re.findall(r"\d+", text)))
        assert all(c == b + 2 * a for a, b, c in zip(terms, terms[1:], terms[2:], strict=False))


@pytest.mark.parametrize("level", [3, 4, 5])
def test_dates_exist(level):
    for text in _texts(verbal.dates, level):
        day, month, year = re.search(rf"(\d+) ({'|'.join(MONTHS)}) (\d{{4}})", text).groups()
        datetime.date(int(year), MONTHS.index(month) + 1, int(day))


@pytest.mark.parametrize("level", range(6))
def test_columns_of_a_table_have_no_ties(level):
    """Which is largest must have one answer."""
    for text in _texts(reasoning.tables, level):
        rows = [line.split(" | ") for line in text.split("\n") if re.search(r"\d+ \| \d+$", line)]
        assert len(rows) == (3, 3, 4, 5, 7, 9)[level]
        for column in (0, -2, -1):
            assert len({row[column] for row in rows}) == len(rows)


def test_things_to_sort_have_no_ties_the_rules_leave_open():
    for text in _texts(verbal.sorting, 5):
        names = re.findall(r"(\w+) \(aged", text)
        assert len(set(names)) == 10
    for level in (0, 1, 3):
        for text in _texts(verbal.sorting, level):
            numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
            assert len(set(map(float, numbers))) == len(numbers)
