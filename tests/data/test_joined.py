"""Several files of outcomes: rows join by id or by text."""

import json

import numpy as np
import pytest

from routerjax.data.readers import read_dataset

NAN = np.nan


@pytest.fixture
def write(tmp_path):
    """Writes files, JSON lines of lists of objects, and gives their paths."""

    def written(**files):
        for name, content in files.items():
            if not isinstance(content, str):
                content = "".join(json.dumps(row) + "\n" for row in content)
            (tmp_path / name).write_text(content)
        return [tmp_path / name for name in files]

    return written


def _rows(target, scores, key="id", **more):
    """A row a score, of the queries q0?, q1?, ...; ids too where `key` says so."""
    return [
        {"query": f"q{i}?", "correct": {target: y}}
        | ({"id": f"i{i}"} if key == "id" else {})
        | more
        for i, y in enumerate(scores)
    ]


QUERIES = [{"id": f"i{i}", "query": f"q{i}?"} for i in range(3)]
BOTH = [[1, 0], [0, 1], [1, NAN]]
CASES = {
    "by id": (_rows("a", [1, 0, 1]), _rows("b", [0, 1])),
    "by text, neither has ids": (_rows("a", [1, 0, 1], ""), _rows("b", [0, 1], "")),
    "by text, the first has ids": (_rows("a", [1, 0, 1]), _rows("b", [0, 1], "")),
    "by text, the second has ids": (_rows("a", [1, 0, 1], ""), _rows("b", [0, 1])),
    "by text, other ids": (
        _rows("a", [1, 0, 1]),
        [row | {"id": row["id"] + "-x"} for row in _rows("b", [0, 1])],
    ),
    "a table and lines": (_rows("a", [1, 0, 1]), "query,b\nq0?,0\nq1?,1\n"),
    "queries, and outcomes by id": (
        QUERIES,
        [{"id": f"i{i}", "correct": y}
         for i, y in enumerate([{"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 1}])],
    ),
    "outcomes by id, and queries": (
        [{"id": f"i{i}", "correct": y}
         for i, y in enumerate([{"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 1}])],
        QUERIES,
    ),
    "a file a model, and the queries last": (
        [{"id": f"i{i}", "correct": {"a": y}} for i, y in enumerate([1, 0, 1])],
        [{"id": f"i{i}", "correct": {"b": y}} for i, y in enumerate([0, 1])],
        QUERIES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rows_of_one_query_are_one(write, case):
    files = {f"f{i}": content for i, content in enumerate(CASES[case])}
    data = read_dataset(write(**files))
    assert data.queries == ("q0?", "q1?", "q2?")
    np.testing.assert_array_equal(data.select_targets(("a", "b")).y_NM, BOTH)
    assert case.endswith(("neither has ids", "a table and lines")) or data.ids[0] == "i0"


def test_the_same_target_in_both_is_several_runs(write):
    data = read_dataset(write(x=_rows("a", [1, 0]), y=_rows("a", [0, 0])))
    assert data.y_NM.tolist() == [[0.5], [0]] and data.runs_NM.tolist() == [[2], [2]]


def test_equal_texts_join_within_their_dataset(write):
    one = [
        {"query": "q?", "dataset": d, "correct": {"a": y}, "id": d} for d, y in (("d", 1), ("e", 0))
    ]
    data = read_dataset(write(x=one, y="query,b,dataset\nq?,0,e\nq?,1,d\n"))
    assert data.ids == ("d", "e") and data.y_NM.tolist() == [[1, 1], [0, 0]]
    assert len(set(data.groups)) == 1


def test_equal_texts_that_are_as_often_in_both_join_in_order(write):
    data = read_dataset(write(x="query,a\nq?,1\nq?,0\n", y="query,b\nq?,0\nq?,1\n"))
    assert data.y_NM.tolist() == [[1, 0], [0, 1]]


def test_texts_that_are_nearly_those_of_another_file_are_named(write, caplog):
    data = read_dataset(write(x='query,a\n"l1\r\nl2",1\nr?,1\n', y='query,b\n"l1\nl2",0\nr?,1\n'))
    assert len(data) == 3
    assert "white space or Unicode form alone, and are rows of their own: 1, such as" in caplog.text


def test_a_text_of_several_ids_is_refused(write):
    twice = [{"id": name, "query": "q?", "correct": {"a": 1}} for name in "xy"]
    with pytest.raises(ValueError, match="b:2: this text is that of the ids x, y in another file"):
        read_dataset(write(a=twice, b="query,b\nq?,1\n"))


def test_an_id_of_two_texts_is_refused(write):
    other = [{"id": "i0", "query": "r?", "correct": {"b": 1}}]
    with pytest.raises(ValueError, match="y:1: .*id 'i0' was already in .*x:1, with another text"):
        read_dataset(write(x=_rows("a", [1]), y=other))


def test_ids_without_a_query_are_named(write, caplog):
    outcomes = [{"id": f"i{i}", "correct": {"a": 1}} for i in range(5)]
    assert len(read_dataset(write(x=QUERIES, y=outcomes))) == 3
    assert "y: ids without a query, left out: 2 of 5" in caplog.text
    strange = [{"id": "other", "correct": {"a": 1}}]
    with pytest.raises(ValueError, match="z: none of its 1 ids, such as 'other', is that of a"):
        read_dataset(write(x=QUERIES, z=strange))


def test_what_either_file_keeps_together_stays_together(write):
    one = [row | {"group": g} for row, g in zip(_rows("a", [1, 0, 1]), "ggh", strict=True)]
    two = [row | {"group": g} for row, g in zip(_rows("b", [1, 0, 1]), "xyy", strict=True)]
    assert len(set(read_dataset(write(x=one, y=two)).groups)) == 1


def test_datasets_that_one_file_lacks_are_left_out(write, caplog):
    assert (
        read_dataset(write(x=_rows("a", [1, 0], dataset="d"), y=_rows("b", [1, 1, 1]))).datasets
        is None
    )
    assert "datasets are left out: 1 rows name none" in caplog.text
