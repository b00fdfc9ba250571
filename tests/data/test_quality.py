"""What is counted and reported of a data set."""

import json

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows
from routerjax.data.quality import ConstantCell, describe
from routerjax.data.readers import read_dataset

LETTERS = np.array(list("abcdefghijklmnoprstuvw"))


def _texts(n, seed=0, words=25):
    """Texts of random words of six letters: they share next to nothing."""
    rng = np.random.default_rng(seed)
    return [" ".join(map("".join, rng.choice(LETTERS, (words, 6)))) for _ in range(n)]


def _data(queries, y_NM=None, given=None, **fields):
    y_NM = np.ones((len(queries), 1)) if y_NM is None else np.asarray(y_NM)
    return RoutingDataset(
        ids=tuple(f"q{i}" for i in range(len(queries))),
        queries=tuple(queries),
        targets=tuple(f"t{m}" for m in range(y_NM.shape[1])),
        y_NM=y_NM.astype(np.float32),
        groups=group_rows(queries, given or [None] * len(queries)),
        **fields,
    )


def test_counts_of_equal_texts_and_missing_outcomes():
    y_NM = [[1, np.nan], [0, 1], [np.nan, np.nan], [1, 0]]
    quality = describe(_data(["Two  words", "two words", "other", "third"], y_NM))
    assert (quality.n_queries, quality.n_targets, quality.n_equal) == (4, 2, 2)
    assert quality.missing == {"t0": 1, "t1": 2}
    assert quality.n_unobserved == 1


@pytest.mark.parametrize("n_rows", [29, 30])
def test_constant_cells_need_thirty_observed_rows(n_rows):
    queries = _texts(n_rows + 50)
    y_NM = np.random.default_rng(0).integers(0, 2, (len(queries), 2)).astype(np.float32)
    y_NM[:n_rows, 1] = 0.4
    y_NM[n_rows : n_rows + 20, 1] = np.nan  # Not observed is not wrong.
    names = ("a",) * (n_rows + 20) + ("b",) * 30
    cells = describe(_data(queries, y_NM, datasets=names)).constant_cells
    expected = (ConstantCell("t1", "a", 30, False),) if n_rows == 30 else ()
    assert cells == expected


def test_a_target_is_one_cell_where_no_datasets_are_named():
    cells = describe(_data(_texts(30))).constant_cells
    assert cells == (ConstantCell("t0", None, 30, True),)


def test_lines_say_what_was_found_and_nothing_else():
    text = _texts(1)[0]
    y_NM = np.zeros((42, 1))
    y_NM[0] = np.nan
    queries = [text, text + " end", "same", "same", *_texts(38, seed=1)]
    lines = describe(_data(queries, y_NM, datasets=("d",) * 42)).lines()
    assert lines[0] == "42 queries, 1 targets"
    for part in ("missing outcomes", "occurs again: 2", "near-equal", "t0 is wrong on all 41 rows"):
        assert sum(part in line for line in lines) == 1, part
    clean = np.arange(40)[:, None] % 2
    assert len(describe(_data(_texts(40), clean)).lines()) == 1


def test_to_json_is_json():
    value = json.loads(json.dumps(describe(_data(_texts(30))).to_json()))
    assert value["n_queries"] == 30
    assert value["constant_cells"][0] == {
        "target": "t0", "dataset": None, "n_rows": 30, "correct": True,
    }  # fmt: skip


def test_texts_of_one_group_are_not_counted():
    text = _texts(1)[0]
    queries = [text, text + " end", *_texts(20, seed=1)]
    assert describe(_data(queries)).n_near_equal == 2
    assert describe(_data(queries, given=["g", "g"] + [None] * 20)).n_near_equal == 0


def test_real_data_is_linked_as_its_description_says(shared_data):
    quality = describe(read_dataset(shared_data / "routing9/train.jsonl"))
    assert 0.03 < quality.n_near_equal / quality.n_queries < 0.05
    assert ConstantCell("llama3-chatqa-1.5-8b", "mmlu", 398, False) in quality.constant_cells
