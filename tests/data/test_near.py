"""Near-equal texts against all pairs, and the cost of the worst case."""

import numpy as np
import pytest

from routerjax.data import near as near_module
from routerjax.data.groups import normalised
from routerjax.data.near import NEAR, near_equal

LETTERS = np.array(list("abcdefghijklmnoprstuvw"))


def _texts(n, seed=0, words=25):
    """Texts of random words of six letters: they share next to nothing."""
    rng = np.random.default_rng(seed)
    return [" ".join(map("".join, rng.choice(LETTERS, (words, 6)))) for _ in range(n)]


def _jaccard(one, two):
    """Of character 5-grams, by sets; the padding makes short texts have some."""
    sets = [{(t + "\0" * 4)[i : i + 5] for i in range(len(t))} for t in map(normalised, (one, two))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _change(text, words):
    """The text with its first words replaced."""
    return " ".join([*("zz" * (i + 2) for i in range(words)), *text.split()[words:]])


def test_near_equal_agrees_with_all_pairs():
    base = _texts(60)
    queries = base + [_change(text, words % 12) + " end" for words, text in enumerate(base)]
    overlap = np.array([[_jaccard(one, two) for one in queries] for two in queries])
    np.fill_diagonal(overlap, 0)
    found = near_equal([normalised(q) for q in queries], np.arange(len(queries)))
    # None is made up; only links within 0.05 of the bound may be overlooked.
    assert not found[overlap.max(axis=1) < NEAR].any()
    assert found[overlap.max(axis=1) >= NEAR + 0.05].all()
    assert 40 < found.sum() < 110


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "b"], ["", "abc"], ["é", "日本", "日本語"]])
def test_few_and_short_texts(texts):
    assert near_equal(texts, np.arange(len(texts))).shape == (len(texts),)


@pytest.mark.slow
@pytest.mark.parametrize("own_words", [5, 40], ids=["all near", "all just too far"])
def test_shared_boilerplate_does_not_make_it_quadratic(monkeypatch, own_words):
    """A thousand prompts in one bucket: checks must grow with the rows, not with their pairs."""
    checked, original = [], near_module._overlap

    def overlap(texts, pairs):
        checked.append(len(pairs))
        return original(texts, pairs)

    monkeypatch.setattr(near_module, "_overlap", overlap)
    boilerplate = _texts(1, words=80)[0]
    queries = [f"{boilerplate} {own}" for own in _texts(1000, seed=2, words=own_words)]
    share = near_equal(queries, np.arange(len(queries))).mean()
    assert (share > 0.99) == (own_words == 5)
    assert sum(checked) < (1 + near_module._FAILURES) * len(queries)
