"""Label files: every format in, and every refusal with file, line and reason."""

import errno
import gzip
import json
import os
import pathlib

import numpy as np
import pytest

from routerjax.data import columns
from routerjax.data.pool import read_pool
from routerjax.data.readers import read_dataset
from routerjax.data.sources.texts import whole
from routerjax.data.writers import write_dataset
from routerjax.runtime.lock import Locked

NAN = np.nan
FULL = {
    "id": "a", "dataset": "d", "group": "g", "query": "Is it?",
    "correct": {"X": 1, "Y": 0.25}, "output_tokens": {"X": 12},
}  # fmt: skip
PRICES = [
    {"name": "Y", "input_price": 0.5, "output_price": None},
    {"name": "X", "input_price": 1, "output_price": 2},
]


def _line(**changes):
    row = {"id": "a", "query": "Is it?", "correct": {"X": 1}} | changes
    return json.dumps({key: value for key, value in row.items() if value is not ...})


@pytest.fixture
def write(tmp_path):
    """Writes a file of text or bytes, gzipped where its name ends so, and gives its path."""

    def written(name, content):
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return written


@pytest.fixture
def pool(write):
    return write("pool.json", json.dumps({"targets": PRICES, "price_unit": "USD per 1M tokens"}))


# ---- formats


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.jsonl.gz"])
def test_jsonl(write, name):
    second = {"id": "b", "dataset": "e", "query": "Or not?", "correct": {"Y": None, "Z": 1.0}}
    data = read_dataset(write(name, f"{json.dumps(FULL)}\n\n{json.dumps(second)}"))
    assert (data.ids, data.queries) == (("a", "b"), ("Is it?", "Or not?"))
    assert (data.targets, data.datasets) == (("X", "Y", "Z"), ("d", "e"))
    assert data.groups[0] == "g" != data.groups[1]
    np.testing.assert_array_equal(data.y_NM, [[1, 0.25, NAN], [NAN, NAN, 1]])
    np.testing.assert_array_equal(data.output_tokens_NM, [[12, NAN, NAN], [NAN] * 3])
    assert data.prices_M2 is data.p_NM is None and data.y_NM.dtype == np.float32


def test_what_a_file_does_not_name_is_none(write):
    data = read_dataset(write("a.jsonl", _line()))
    assert data.datasets is data.output_tokens_NM is data.prices_M2 is None


def test_the_pool_decides_targets_order_and_prices(write, pool):
    data = read_dataset(write("a.jsonl", json.dumps(FULL)), pool)
    assert data.targets == ("Y", "X")
    np.testing.assert_array_equal(data.y_NM, [[0.25, 1]])
    np.testing.assert_array_equal(data.prices_M2, [[0.5, NAN], [1, 2]])


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz"])
def test_long_csv(write, name):
    data = read_dataset(write(name,
        "question,model,isCorrect,output_tokens\r\n"
        '"One, or\r\n""two""?",X,True,12\r\n'
        "Three?,X,0.5,\r\n"
        '"One, or\r\n""two""?",Y,FALSE,7\r\n'
        "Three?,Y,,\r\n"
    ))  # fmt: skip
    assert data.queries == ('One, or\r\n"two"?', "Three?")
    assert data.targets == ("X", "Y") and len(set(data.ids)) == 2
    np.testing.assert_array_equal(data.y_NM, [[1, 0], [0.5, NAN]])
    np.testing.assert_array_equal(data.output_tokens_NM, [[12, 7], [NAN, NAN]])


def test_long_csv_may_name_ids_datasets_and_groups(write):
    content = "id,dataset,question,model,isCorrect\n1,d,q?,X,1\n1,d,q?,Y,0\n2,e,r?,X,1\n"
    data = read_dataset(write("a.csv", content))
    assert (data.ids, data.datasets) == (("1", "2"), ("d", "e"))


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz"])
def test_wide_csv(write, name):
    data = read_dataset(write(name, "id, query ,X,Y,dataset\n1,q?,1,,d\n2,r?,0,0.5,e\n"))
    assert (data.ids, data.queries) == (("1", "2"), ("q?", "r?"))
    assert (data.targets, data.datasets) == (("X", "Y"), ("d", "e"))
    np.testing.assert_array_equal(data.y_NM, [[1, NAN], [0, 0.5]])


def test_equal_texts_of_a_wide_csv_are_two_rows_of_one_group(write):
    data = read_dataset(write("a.csv", "query,X\nq?,1\nq?,0\n"))
    assert len(set(data.ids)) == 2 and len(set(data.groups)) == 1


def test_ids_made_from_texts_match_between_csv_layouts(write):
    long = read_dataset(write("a.csv", "question,model,isCorrect\nq?,X,1\n"))
    wide = read_dataset(write("b.csv", "query,Y\nq?,0\n"))
    assert long.join(wide).y_NM.tolist() == [[1, 0]]


def test_a_cell_may_hold_a_book(write):
    """The csv module's own limit is 131072 characters."""
    book = "word " * 60_000
    assert read_dataset(write("a.csv", f'query,X\n"{book}",1\n')).queries == (book,)


def test_a_byte_order_mark_is_not_content(write):
    assert read_dataset(write("a.csv", "\ufeffquery,X\nq?,1\n")).queries == ("q?",)
    assert read_dataset(write("a.jsonl", "\ufeff" + _line())).ids == ("a",)


# ---- refusals of a line: (content, line, reason)

JSONL = {
    "invalid JSON": ('{"id": "a", "query": ', 2, "not valid JSON: Expecting value"),
    "nested without end": ("[" * 100_000, 2, "not valid JSON: "),
    "not an object": ("[1, 2]", 2, r"expected a JSON object, got '\[1, 2\]"),
    "no query": (_line(query=...), 2, 'the field "query" is missing'),
    "no correct": (_line(correct=...), 2, 'the field "correct" is missing'),
    "id a fraction": (_line(id=7.5), 2, "id: expected a text that is not empty, got 7.5"),
    "id a truth value": (_line(id=True), 2, "id: expected a text that is not empty, got True"),
    "sharegpt": (
        '{"conversations": [], "correct": {"X": 1}}',
        2,
        "missing: .*got 'conversations', ",
    ),
    "empty id": (_line(id=""), 2, "id: expected a text that is not empty"),
    "empty query": (_line(query=""), 2, "query: expected a text that is not empty, got ''"),
    "blank query": (_line(query=" \n"), 2, "query: expected a text that is not empty"),
    "null query": (_line(query=None), 2, "query: expected a text that is not empty, got None"),
    "half a character": (_line(query="a\ud83d"), 2, "query: .* lone surrogate .* at character 1"),
    "score above 1": (_line(correct={"X": 1.01}), 2, r"correct\['X'\]: .*in \[0, 1\].* got 1.01"),
    "score below 0": (_line(correct={"X": -1}), 2, r"correct\['X'\]: .*got -1"),
    "score NaN": (_line(correct={"X": NAN}), 2, r"correct\['X'\]: .*got nan"),
    "score infinite": (_line(correct={"X": np.inf}), 2, r"correct\['X'\]: .*got inf"),
    "score text": (_line(correct={"X": "1"}), 2, r"correct\['X'\]: .*got '1'"),
    "correct a list": (_line(correct=[1]), 2, r"correct: expected an object .*got \[1\]"),
    "target without name": (_line(correct={" ": 1}), 2, "expected names of targets, got ' '"),
    "target twice": ('{"id": "a", "query": "q", "correct": {"X": 1, "X": 0}}', 2, "'X' is twice"),
    "tokens a fraction": (_line(output_tokens={"X": 1.5}), 2, r"output_tokens\['X'\]: .*got 1.5"),
    "confidence above 1": (_line(confidence={"X": 1.5}), 2, r"confidence\['X'\]: .*\[0, 1\].*1.5"),
    "tokens negative": (_line(output_tokens={"X": -1}), 2, r"output_tokens\['X'\]: .*got -1"),
    "tokens without end": (
        _line(output_tokens={"X": 10**40}),
        2,
        r"output_tokens\['X'\]: .*to 167",
    ),
    "group a list": (_line(group=[3]), 2, r"group: expected a text that is not empty, got \[3\]"),
    "id of two texts": (_line() + "\n" + _line(query="Or?"), 3, "the id 'a' was already in line 2"),
    "id of two datasets": (
        _line(dataset="d") + "\n" + _line(dataset="e"),
        3,
        "dataset: .*'d' in line 2, got 'e'",
    ),
    "cost negative": (_line(cost={"X": -1}), 2, r"cost\['X'\]: expected USD >= 0, got -1"),
    "no runs": (_line(runs={"X": 0}), 2, r"runs\['X'\]: expected an integer from 1 .*got 0"),
}
OK = json.dumps({"id": "first", "query": "ok", "correct": {"X": 1}})


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("case", JSONL)
def test_jsonl_refusals(write, case, packing):
    content, line, reason = JSONL[case]
    path = write(f"labels.jsonl{packing}", f"{OK}\n{content}\n")
    with pytest.raises(ValueError, match=reason) as error:
        read_dataset(path)
    assert str(error.value).startswith(f"{path}:{line}: ")


LONG = "question,model,isCorrect,output_tokens\nq?,X,1,3\n"
WIDE = "query,X,Y\nq?,1,0\n"
CSV = {
    "line of a later answer": (LONG + '"r\n?",X,1,\nq?,Y,2,\n', 5, "isCorrect: .*got '2'"),
    "long: not a number": (LONG + "r?,X,maybe,\n", 3, "isCorrect: .*True or False.* got 'maybe'"),
    "long: NaN": (LONG + "r?,X,nan,\n", 3, "isCorrect: .*got 'nan'"),
    "long: no question": (LONG + " ,X,1,\n", 3, "question and model must not be empty"),
    "long: no model": (LONG + "r?,,1,\n", 3, "question and model must not be empty"),
    "long: many tokens": (LONG + "r?,X,1,1e30\n", 3, "output_tokens: .*to 16777216, got '1e30'"),
    "long: tokens": (LONG + "r?,X,1,2.5\n", 3, "output_tokens: expected an integer .*got '2.5'"),
    "long: confidence": (
        "question,model,isCorrect,confidence\nq?,X,1,\nr?,X,1,83\n", 3, r"confidence: .*got '83'"
    ),
    "long: tokens negative": (LONG + "r?,X,1,-2\n", 3, "output_tokens: .*got '-2'"),
    "long: two datasets": (
        "id,question,model,isCorrect,dataset\n1,q?,X,1,d\n1,q?,Y,1,e\n", 3, "'d' in line 2, got"),
    "long: an id of two texts": (
        "id,question,model,isCorrect\n1,q?,X,1\n1,r?,X,1\n", 3, "the id '1' was already"),
    "too few cells": (LONG + "r?,X\n", 3, "expected 4 cells as in the header, got 2"),
    "quote never closed": (LONG + '"r?,X,1,\ns?,X,1,\n', 3, "not valid CSV: unexpected end"),
    "wide: above 1": (WIDE + '"r\n?",1,1\ns?,1,1.5\n', 5, r"Y: .*in \[0, 1\].*got '1.5'"),
    "wide: empty query": (WIDE + " ,1,1\n", 3, "query: expected a text that is not empty"),
    "wide: duplicate id": ("id,query,X\n1,q?,1\n1,r?,1\n", 3, "the id '1' was already in line 2"),
    "decimal commas": ("query;X;Y\nq?;1;0\nr?;0,5;1\n", 3, "X: .*got '0,5' .write 0.5, not 0,5"),
    "a column without a name": ("query,X,\nq?,1,\nr?,1,0\n", 3, "column 3 has '0' and no name"),
    "another kind of column": ("query,X,at\nq?,1,2026\n", 2, "at: .*'2026': each column but query"),
    "a mean": ("query,X,Mean\nq?,1,1\n", 1, "'Mean' would be a target: leave it out"),
    "an answer a row": ("query,model,score\nq?,X,1\n", 1, "'model' would be .*question, model, i"),
    "old line ends": ("query,X\rq?,1\r", 1, "a carriage return stands alone: save it with"),
    "messages as Python prints them": (
        "query,X\n\"[{'role': 'user', 'content': 'q?'}]\",1\n", 2, "query: messages that are w"),
    "wrong header": ("prompt,score\nq?,1\n", 1, "expected the columns question, .*got prompt"),
    "column twice": ("query,X,X\nq?,1,1\n", 1, "the column 'X' is there twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_csv_refusals(write, case):
    content, line, reason = CSV[case]
    path = write("labels.csv", content)
    with pytest.raises(ValueError, match=reason) as error:
        read_dataset(path)
    assert str(error.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", _line(correct={"X": 1, "Y": 1}) + "\n" + _line(id="b", correct={"Z": 1})),
        ("a.csv", "question,model,isCorrect\nq?,X,1\nq?,Y,1\nq?,Z,1\n"),
        ("b.csv", "query,X,Y,Z\nq?,1,1,1\n"),
    ],
)
def test_a_target_outside_the_pool_is_left_out_and_named(write, pool, caplog, name, content):
    assert read_dataset(write(name, content), pool).targets == ("Y", "X")
    assert "targets that are left out: 'Z' (1 outcomes)" in caplog.text


# ---- refusals of a whole file


def test_a_pool_target_without_outcomes_is_refused(write, pool):
    with pytest.raises(
        ValueError, match="no row has an outcome of the target 'Y'.*out of the pool"
    ):
        read_dataset(write("a.jsonl", _line()), pool)


def test_a_target_with_nulls_only_is_refused(write):
    with pytest.raises(ValueError, match="target 'Y', only nulls"):
        read_dataset(write("a.jsonl", _line(correct={"X": 1, "Y": None})))
    with pytest.raises(ValueError, match="no row has an outcome of any target"):
        read_dataset(write("b.jsonl", _line(correct={})))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(write, name, content):
    with pytest.raises(ValueError, match="expected at least one query, the file has none"):
        read_dataset(write(name, content))


def test_dataset_names_on_some_rows_only_are_refused(write):
    with pytest.raises(ValueError, match='"dataset" is in line 1 and not in line 2'):
        read_dataset(write("a.jsonl", _line(dataset="d") + "\n" + _line(id="b")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_bytes_that_are_not_utf8_are_refused_with_their_line(write, name):
    path = write(name, f"{OK}\n".encode() * 1 + _line(query="caf?").encode().replace(b"?", b"\xe9"))
    with pytest.raises(ValueError, match="not UTF-8") as error:
        read_dataset(path)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_a_damaged_gzip_file_is_refused_with_its_line(write, damage):
    path = write(
        "a.jsonl.gz", "".join(_line(id=f"{i}", query=f"{i * i}") + "\n" for i in range(999))
    )
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:99] + bytes(255 - b for b in whole[99:199]) + whole[199:],
        "not gzip": b"plain text",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:\d+: not a whole gzip file"):
        read_dataset(path)


def test_other_names_and_missing_files_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt:1: expected the columns question, .*got x"):
        read_dataset(write("a.txt", "x"))
    with pytest.raises(ValueError, match="format: expected one of jsonl, .*got 'xls'"):
        read_dataset(write("a.txt", "x"), format="xls")
    with pytest.raises(ValueError, match="a folder with no files of a known format"):
        read_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        read_dataset(tmp_path / "nothing.jsonl")


# ---- pools


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"targets": [{"name": "X", "name": "Y"}]}', "not valid JSON: the name 'name' is twice"),
        ("[]", 'expected an object with a list "targets"'),
        ({"targets": []}, 'list "targets", not empty'),
        ({"targets": [{"input_price": 1}]}, r'targets\[0\]: expected an object with a "name"'),
        ({"targets": [{"name": "X", "input_price": 1}]}, "target 'X': \"output_price\" is missing"),
        ({"targets": [PRICES[0] | {"input_price": -1}]}, "input_price: expected USD .* got -1"),
        ({"targets": [PRICES[0] | {"input_price": "1"}]}, "input_price: expected USD .* got '1'"),
        ({"targets": [PRICES[0], PRICES[0]]}, "each name once and not empty, got 'Y'"),
        ({"targets": PRICES, "price_unit": "EUR"}, "price_unit: expected .*got 'EUR'"),
    ],
)
def test_pool_refusals(write, content, reason):
    path = write("pool.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=reason) as error:
        read_pool(path)
    assert str(error.value).startswith(str(path))


# ---- real files


def test_real_files_are_read_whole(shared_data):
    folder = shared_data / "routing9"
    data = read_dataset(folder / "train.jsonl", folder / "pool.json")
    assert data.y_NM.shape == (4608, 9) and len(set(data.datasets)) == 14
    assert not np.isnan(data.y_NM).any() and np.isfinite(data.prices_M2).all()


def test_a_pipe_is_refused_and_not_read_in_part(tmp_path):
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    for read in (read_dataset, read_pool):
        with pytest.raises(ValueError, match=r"pipe\.jsonl is a pipe or a device, .*into a file"):
            read(path)


def test_utf16_is_named(write):
    path = write("log.csv", "")
    path.write_bytes("query,a,b\nwhat?,1,0\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"log\.csv:1: not UTF-8 \(it begins as UTF-16 does, "):
        read_dataset(path)


def test_targets_that_are_almost_all_unseen_are_refused(write, monkeypatch):
    path = write("runs.csv", "question,model,isCorrect\n"
                 + "".join(f"q{i},run-{i},{i % 2}\n" for i in range(60)))  # fmt: skip
    monkeypatch.setattr(columns, "_SPARSEST", 30)
    assert len(read_dataset(path).targets) == 60
    monkeypatch.setattr(columns, "_MOST_CELLS", 1000)
    with pytest.raises(ValueError, match="60 targets, such as 'run-0', .*of 60 of the 3,600 pairs"):
        read_dataset(path)


def test_only_a_file_is_replaced_and_by_one_writer_at_a_time(tmp_path):
    data = read_dataset(_two_rows(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe", pathlib.Path("/dev/null")):
        with pytest.raises(ValueError, match="is no file, but a folder or a device"):
            write_dataset(data, other)
    with whole(tmp_path / "out.jsonl") as file:
        file.write("x" * 9)
        with pytest.raises(Locked, match="out.jsonl.lock: .*process"):
            write_dataset(data, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "x" * 9
    write_dataset(data, tmp_path / "out.jsonl")
    assert len(read_dataset(tmp_path / "out.jsonl")) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "pipe", "two.jsonl"}


def test_a_full_disk_leaves_the_old_file_and_is_told_with_the_name(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(OSError, match="cannot write .*out.jsonl: .*No space"), whole(path) as file:
        file.write("new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def _two_rows(folder):
    path = folder / "two.jsonl"
    path.write_text("".join(f'{{"query": "q{i}", "correct": {{"a": {i}}}}}\n' for i in (0, 1)))
    return path


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"PK\3\4", "not a whole zip archive"), (b"\x28\xb5\x2f\xfd", "compressed by zstd: unp"),
        (b"BZh9", "compressed by bzip2"), (b"\xfd7zXZ\0", "compressed by xz"),
        (b"ARROW1\0\0", "write it as parquet"), (b"SQLite format 3\0", "SQLite database"),
        (b"\x80\x04\x95", "a pickle"), (b"\xd0\xcf\x11\xe0", "an Excel workbook: save the sheet"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(write, start, reason):
    path = write("a.csv", start + b"\xff" * 60)
    with pytest.raises(ValueError, match=f"{path}(:| is) .*{reason}"):
        read_dataset(path)


def test_tables_of_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    def written(names, *columns):
        table = pyarrow.Table.from_arrays(list(map(pyarrow.array, columns)), names)
        parquet.write_table(table, tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    scores = pyarrow.array([[("X", 1.0)]], pyarrow.map_(pyarrow.string(), pyarrow.float64()))
    assert read_dataset(written(["query", "correct"], ["q?"], scores)).targets == ("X",)
    with pytest.raises(ValueError, match="x.parquet:1: the column 'X' is there twice"):
        read_dataset(written(["query", "X", "X"], ["q?"], [1], [0]))
    with pytest.raises(ValueError, match="x.parquet:1: id: expected a text or a number, got b'"):
        read_dataset(written(["query", "id", "X"], ["q?"], [b"1"], [0]))


def test_targets_that_differ_in_case_alone_are_named(write, caplog):
    read_dataset(write("a.jsonl", _line(correct={"gpt x": 1, "GPT X": 0, "y": 1})))
    assert "differ in case or blanks alone: 'gpt x' and 'GPT X'" in caplog.text
