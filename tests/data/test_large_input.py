"""What is wide or long is read in time and memory in proportion, or refused by its line."""

import json
import time

import pytest

from routerjax.data.fields import first_twice, listed
from routerjax.data.readers import read_dataset
from routerjax.data.sources import texts

N = 20_000


@pytest.fixture
def seconds():
    """Fails a test that computes for longer than what is linear takes, many times over."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 5


def jsonl(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_many_names_of_an_object(tmp_path, seconds, caplog):
    names = {f"n{i}": 1 for i in range(N)}
    row = {"query": "a", "correct": {"m": 1}} | names
    assert len(read_dataset(jsonl(tmp_path / "a.jsonl", row))) == 1
    assert "'n19' (1 rows) and 19,980 more" in caplog.text
    (tmp_path / "b.jsonl").write_text(json.dumps(row)[:-1] + ', "n19999": 2}\n')
    with pytest.raises(ValueError, match="the name 'n19999' is twice in one object"):
        read_dataset(tmp_path / "b.jsonl")


@pytest.mark.slow
def test_many_columns(tmp_path, seconds):
    header = ",".join(["query", *(f"m{i}" for i in range(N))])
    (tmp_path / "a.csv").write_text(f"{header}\na{',1' * N}\n")
    assert len(read_dataset(tmp_path / "a.csv").targets) == N
    (tmp_path / "b.csv").write_text(f"{header},m19999\na{',1' * (N + 1)}\n")
    with pytest.raises(ValueError, match="the column 'm19999' is there twice"):
        read_dataset(tmp_path / "b.csv")


def test_many_targets(tmp_path, seconds):
    names = [f"m{i}" for i in range(N)]
    rows = [{"query": q, "correct": dict.fromkeys(names, 1)} for q in "ab"]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    priced = [{"name": name, "input_price": 1, "output_price": 1} for name in names]
    (tmp_path / "pool.json").write_text(json.dumps({"targets": priced}))
    assert read_dataset(path, pool=tmp_path / "pool.json").y_NM.shape == (2, N)
    data = read_dataset(path, targets=names, exclude_targets=names[1:])
    assert data.targets == ("m0",)
    assert read_dataset(path).select_targets(names[::-1]).targets[0] == names[-1]


@pytest.mark.slow
def test_many_rows_of_one_text_without_an_id(tmp_path, seconds):
    row = {"query": "same", "correct": {"m": 1}}
    ids = read_dataset(jsonl(tmp_path / "a.jsonl", *[row] * N)).ids
    assert ids[1:3] == (f"{ids[0]}-2", f"{ids[0]}-3") and len(set(ids)) == N


@pytest.mark.parametrize("text", ["x" * 2000, '{"query": "' + "x" * 2000, '"' + "x,\n" * 2000])
def test_a_line_without_end_is_refused_before_it_is_all_read(text, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MOST", 1000)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"a.csv:1: (a line of 0 MiB or more|not valid CSV)"):
        read_dataset(tmp_path / "a.csv")


@pytest.mark.parametrize("price", ["1" + "0" * 400, "1e999", "NaN"])
def test_a_price_beyond_any_float_is_refused(price, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"query": "a", "correct": {"m": 1}})
    target = f'{{"name": "m", "input_price": {price}, "output_price": 1}}'
    (tmp_path / "pool.json").write_text(f'{{"targets": [{target}]}}')
    with pytest.raises(ValueError, match="input_price: expected USD per 1M tokens"):
        read_dataset(path, pool=tmp_path / "pool.json")


def test_names_that_are_listed_and_the_first_that_is_there_twice():
    assert listed("abc") == "a, b, c"
    assert first_twice("abcab") == "a" and first_twice("abc") is None
