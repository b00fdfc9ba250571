"""What json.dumps and pandas write is read, and nothing is guessed in silence."""

import gzip
import json

import numpy as np
import pytest

from routerjax.data.readers import read_dataset

NAN = np.nan


def _jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ROW = {"id": "1", "query": "Why?", "correct": {"a": 1, "b": 0}}

# (name of the file, content, what is read of it by name)
READ = {
    "true and false": (
        "x.jsonl", _jsonl(ROW | {"correct": {"a": True, "b": False}}), {"y_NM": [[1, 0]]}),
    "an integer id": ("x.jsonl", _jsonl(ROW | {"id": 17}), {"ids": ("17",)}),
    "an id that pandas made a float": ("x.jsonl", _jsonl(ROW | {"id": 17.0}), {"ids": ("17",)}),
    "integer groups and datasets": (
        "x.jsonl", _jsonl(ROW | {"group": 3, "dataset": 4}),
        {"groups": ("3",), "datasets": ("4",)}),
    "a missing group": ("x.jsonl", _jsonl(ROW | {"dataset": NAN}), {"datasets": None}),
    "floats beside null": (
        "x.jsonl", _jsonl(ROW | {"output_tokens": {"a": 212.0, "b": None}}),
        {"output_tokens_NM": [[212, NAN]]}),
    "no id": ("x.jsonl", _jsonl({key: ROW[key] for key in ("query", "correct")}),
        {"y_NM": [[1, 0]]}),
    "a list of objects": ("x.json", json.dumps([ROW, ROW | {"id": "2"}], indent=1),
                          {"ids": ("1", "2")}),
    "a gzip file of another name": (
        "x.jsonl", gzip.compress(_jsonl(ROW).encode(), mtime=0), {"ids": ("1",)}),
    "CSV of another name": ("x.txt", "query,a,b\\nq?,1,0\\n", {"y_NM": [[1, 0]]}),
    "a wide table as JSON lines": (
        "x.jsonl", _jsonl({"id": 3, "query": "q?", "a": 1.0, "b": 0, "a|cost": 0.5}),
        {"ids": ("3",), "targets": ("a", "b"), "costs_NM": [[0.5, NAN]]}),
    "a wide table as a JSON list": (
        "x.json", json.dumps([{"query": "q?", "a": True, "b": 0}, {"query": "r?", "b": 1}]),
        {"targets": ("a", "b"), "y_NM": [[1, 0], [NAN, 1]]}),
    "a long table as JSON lines": (
        "x.jsonl", _jsonl({"question": "q?", "model": "a", "isCorrect": True, "output_tokens": 9.0},
                          {"question": "q?", "model": "b", "isCorrect": 0, "output_tokens": NAN}),
        {"y_NM": [[1, 0]], "output_tokens_NM": [[9, NAN]]}),
    "an index column": (
        "x.csv", ",query,a,b\\n0,q?,1,0\\n1,r?,0,1\\n", {"targets": ("a", "b")}),
    "a reset index": (
        "x.csv", "index,query,a,b\\n0,q?,1,0\\n1,r?,0,1\\n", {"targets": ("a", "b")}),
    "a saved index read again": (
        "x.csv", "Unnamed: 0,query,a,b\\n0,q?,1,0\\n1,r?,0,1\\n", {"targets": ("a", "b")}),
    "an index of a long table": (
        "x.csv", ",question,model,isCorrect\\n0,q?,a,1\\n1,q?,b,True\\n", {"y_NM": [[1, 1]]}),
    "integer ids beside an empty cell": (
        "x.csv", "query,id,a,group\\nq?,1,1,3.0\\nr?,2,0,3.0\\n", {"groups": ("3.0", "3.0")}),
    "several runs": (
        "x.csv", "question,model,isCorrect,output_tokens\\nq?,a,1,10\\nq?,a,0,20\\nq?,b,1,\\n",
        {"y_NM": [[0.5, 1]], "runs_NM": [[2, 1]], "output_tokens_NM": [[15, NAN]]}),
    "several runs, of several lines": (
        "x.jsonl", _jsonl(ROW, ROW | {"correct": {"a": 0.5}}, ROW | {"correct": {"a": 0}}),
        {"y_NM": [[0.5, 0]], "runs_NM": [[3, 1]]}),
    "runs that were counted before": (
        "x.jsonl", _jsonl(ROW | {"runs": {"a": 3}}, ROW | {"correct": {"a": 0}}),
        {"y_NM": [[0.75, 0]], "runs_NM": [[4, 1]]}),
    "an answer a line": (
        "x.jsonl", _jsonl(ROW | {"correct": {"a": 1}}, ROW | {"correct": {"b": 0}}),
        {"y_NM": [[1, 0]], "runs_NM": None}),
    "one text under two ids": (
        "x.csv", "id,question,model,isCorrect\\np1,q?,a,1\\np1,q?,b,0\\np2,q?,a,0\\np2,q?,b,1\\n",
        {"ids": ("p1", "p2"), "y_NM": [[1, 0], [0, 1]]}),
    "one text in two datasets": (
        "x.csv", "question,model,isCorrect,dataset\\nq?,a,1,d\\nq?,b,0,d\\nq?,a,0,e\\nq?,b,1,e\\n",
        {"datasets": ("d", "e"), "y_NM": [[1, 0], [0, 1]]}),
    "a dataset named in one line of a text": (
        "x.csv", "question,model,isCorrect,dataset\\nq?,a,1,\\nq?,b,0,d\\n",
        {"datasets": ("d",), "y_NM": [[1, 0]]}),
    "costs beside scores": (
        "x.csv", "query,a,b,a|total_cost,b|cost,a|output_tokens,a|response\\nq?,1,0,0.01,,7,hm\\n",
        {"targets": ("a", "b"), "costs_NM": [[0.01, NAN]], "output_tokens_NM": [[7, NAN]]}),
    "scores behind bars": (
        "x.csv", "query,a|correct,a|cost,b|score,b|reply\\nq?,1,0.01,0,hm\\n",
        {"targets": ("a", "b"), "y_NM": [[1, 0]], "costs_NM": [[0.01, NAN]]}),
    "conversations in a table": (
        "x.csv", 'messages,a\\n"[{""role"":""system"",""content"":""s""},'
        '{""role"":""user"",""content"":""u""}]",1\\n', {"queries": ("system: s\n\nuser: u",)}),
    "semicolons, as spreadsheets write them": (
        "x.csv", 'query;a;b\\n"q, or r;?";1;0\\n',
        {"queries": ("q, or r;?",), "y_NM": [[1, 0]]}),
    "tabs": ("x.tsv", "query\ta\tb\\nq, r?\t1\t0\\n", {"queries": ("q, r?",), "y_NM": [[1, 0]]}),
    "a blank behind each comma": (
        "x.csv", 'question, model, isCorrect, dataset\\n"q, r?", a, 1, d\\n"q, r?", b, 0, d\\n',
        {"queries": ("q, r?",), "targets": ("a", "b"), "datasets": ("d",)}),
    "blanks around names": (
        "x.csv", "question,model,isCorrect,dataset\\nq?,a ,1,d\\nq?, b,0,d \\n",
        {"targets": ("a", "b"), "datasets": ("d",)}),
    "rows of commas alone": ("x.csv", "query,a,b,\\nq?,1,0,\\n , ,,\\n", {"targets": ("a", "b")}),
    "recorded bills": (
        "x.jsonl", _jsonl(ROW | {"cost": {"a": 0.01}, "input_tokens": {"a": 9, "b": 8},
                                 "cached_input_tokens": {"b": 2}}),
        {"costs_NM": [[0.01, NAN]], "input_tokens_NM": [[9, 8]],
         "cached_input_tokens_NM": [[NAN, 2]]}),
    "bills of a long table": (
        "x.csv", "question,model,isCorrect,cost,input_tokens\\nq?,a,1,0.01,9\\nq?,b,1,,8\\n",
        {"costs_NM": [[0.01, NAN]], "input_tokens_NM": [[9, 8]]}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_is_read(tmp_path, case):
    name, content, expected = READ[case]
    path = tmp_path / name
    path.write_bytes(
        content if isinstance(content, bytes) else content.replace("\\n", "\n").encode()
    )
    data = read_dataset(path)
    for field, value in expected.items():
        if isinstance(value, list):
            np.testing.assert_array_almost_equal(getattr(data, field), value, err_msg=field)
        else:
            assert getattr(data, field) == value, field


def test_equal_texts_are_one_group_whatever_their_ids(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,question,model,isCorrect\n1,q?,a,1\n2,q?,a,0\n3,r?,a,0\n")
    groups = read_dataset(path).groups
    assert groups[0] == groups[1] != groups[2]


def test_several_runs_are_said(tmp_path, caplog):
    (tmp_path / "x.jsonl").write_text(_jsonl(ROW, ROW))
    read_dataset(tmp_path / "x.jsonl")
    assert "means of several runs: 2 of 2" in caplog.text


UNREAD = {
    "jsonl": ("x.jsonl", _jsonl(ROW | {"source": "s"}, ROW | {"source": "t", "answer": "42"}),
              "fields that are not read: 'source' (2 rows), 'answer' (1 rows)"),
    "long": ("x.csv", "question,model,isCorrect,prompt_length\nq?,a,1,5\nr?,a,1,5\n",
             "fields that are not read: 'prompt_length' (2 rows)"),
    "wide": ("x.csv", "query,a,a|model_response\nq?,1,hm\n",
             "fields that are not read: 'a|model_response' (1 rows)"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_read_is_named_once(tmp_path, caplog, case):
    name, content, said = UNREAD[case]
    (tmp_path / name).write_text(content)
    read_dataset(tmp_path / name)
    assert said in caplog.text and len(caplog.records) <= 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("groups", "group"), ("Group", "group"), ("output_token", "output_tokens"),
        ("outputTokens", "output_tokens"), ("data_set", "dataset"), ("dataset_", "dataset"),
        ("datsaet", "dataset"), ("costs", "cost"), ("input tokens", "input_tokens"),
        ("corect", "correct"), ("qeury", "query"), ("ids", "id"), ("outptu_token", "output_tokens"),
        ("confidance", "confidence"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["jsonl", "wide", "long"])
def test_near_misses_of_known_names_are_refused(tmp_path, layout, name, meant):
    if layout == "long" and meant in ("query", "correct"):
        pytest.skip("a long table calls these question and isCorrect")
    content = {
        "jsonl": _jsonl(ROW | {name: "x"}),
        "wide": f"query,a,{name}\nq?,1,1\n",
        "long": f"question,model,isCorrect,{name}\nq?,a,1,1\n",
    }[layout]
    path = tmp_path / ("x.jsonl" if layout == "jsonl" else "x.csv")
    path.write_text(content)
    with pytest.raises(ValueError, match=rf":1: .*{name}.*{meant}"):
        read_dataset(path)


@pytest.mark.parametrize(
    "column", ["a_cost", "a cost", "a.output_tokens", "a-tokens", "a/response", "a_confidence"]
)
def test_a_column_that_tells_more_of_a_target_is_none(tmp_path, column):
    path = tmp_path / "x.csv"
    path.write_text(f"query,a,{column}\nq?,1,0.5\n")
    with pytest.raises(ValueError, match=rf"the column '{column}' would be a target, and looks as"):
        read_dataset(path)


@pytest.mark.parametrize(
    "column",
    ["gpt4_cost", "cost_gpt4", "cost(a)", "a Total Cost ($)", "aTotalCost", "USD/a", "n_tokens",
     "prompt tokens a", "A-LATENCY"],
)  # fmt: skip
def test_dollars_and_tokens_are_no_scores(tmp_path, caplog, column):
    """Nothing but the column's name tells a cost of 0.0093 USD from a score."""
    (tmp_path / "x.csv").write_text(f"query,a,{column}\nq?,1,0.0093\n")
    with pytest.raises(ValueError, match=":1: .* looks as if it told costs or tokens") as error:
        read_dataset(tmp_path / "x.csv")
    assert repr(column) in str(error.value)
    assert read_dataset(tmp_path / "x.csv", exclude_targets=(column,)).targets == ("a",)
    assert f"targets that are left out: '{column}' (1 outcomes)" in caplog.text


def test_scores_behind_a_bar_need_a_name_that_is_known(tmp_path):
    (tmp_path / "x.csv").write_text("query,a|performance,a|total_cost\nq?,1,0.0093\n")
    with pytest.raises(ValueError, match=r"none has its scores: .* 'a\|correct'"):
        read_dataset(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("back", "meant"), [("costs", "cost"), ("Cost", "cost"), ("total cost", "total_cost"),
                        ("outputTokens", "output_tokens"), ("input_token", "input_tokens")]
)  # fmt: skip
@pytest.mark.parametrize("scores", ["a", "a|correct"])
def test_near_misses_behind_a_bar_are_refused(tmp_path, scores, back, meant):
    (tmp_path / "x.csv").write_text(f"query,{scores},a|{back}\nq?,1,0.5\n")
    with pytest.raises(ValueError, match=rf"'a\|{back}' is not read: write 'a\|{meant}'"):
        read_dataset(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "value",
    [
        {"query": {"0": "q?", "1": "r?"}, "a": {"0": 1, "1": 0}},
        {"columns": ["query", "a"], "index": [0], "data": [["q?", 1]]},
        {"schema": {"fields": []}, "data": [{"query": "q?", "a": 1}]},
    ],
)
def test_a_table_in_one_object_is_refused_with_the_way_out(tmp_path, value):
    """As pandas' to_json writes it by default, and for orient split and table."""
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"x.json: .*whole table.*orient='records', lines=True"):
        read_dataset(tmp_path / "x.json")


def test_rows_of_the_jsonl_format_in_parquet(tmp_path):
    """As pandas, polars and datasets write the lines that they read: absent names are null."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {"id": 1, "messages": turns, "correct": {"a": True}, "runs": {"a": 2}},
        {"id": 2, "query": "q?", "correct": {"b": False}, "output_tokens": {"b": 7}},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows, _schema(pyarrow)), tmp_path / "x.parquet")
    data = read_dataset(tmp_path / "x.parquet")
    assert data.ids == ("1", "2") and data.queries == ("system: s\n\nuser: u", "q?")
    np.testing.assert_array_equal(data.y_NM, [[1, NAN], [NAN, 0]])
    np.testing.assert_array_equal(data.output_tokens_NM, [[NAN, NAN], [NAN, 7]])
    assert data.runs_NM.tolist() == [[2, 0], [0, 1]]


def _schema(pyarrow):
    def of_targets(kind):
        return pyarrow.struct([("a", kind), ("b", kind)])

    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    return pyarrow.schema(
        [("id", pyarrow.int64()), ("query", pyarrow.string()), ("messages", pyarrow.list_(turn)),
         ("correct", of_targets(pyarrow.bool_())), ("runs", of_targets(pyarrow.int64())),
         ("output_tokens", of_targets(pyarrow.int64()))]
    )  # fmt: skip


@pytest.mark.parametrize("name", ["source", "model", "answer", "difficulty", "idx", "cast"])
def test_other_names_are_not_near(tmp_path, name):
    (tmp_path / "x.jsonl").write_text(_jsonl(ROW | {name: "x"}))
    assert len(read_dataset(tmp_path / "x.jsonl")) == 1


@pytest.mark.parametrize(
    "key", ["context_windows", "cached_input_prices", "modality", "input_prise"]
)
def test_near_misses_in_a_pool_are_refused(tmp_path, key):
    (tmp_path / "x.jsonl").write_text(_jsonl(ROW))
    target = {"input_price": 1, "output_price": 2}
    pool = {"targets": [target | {"name": "a", key: 1}, target | {"name": "b"}]}
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    with pytest.raises(ValueError, match=f"pool.json: target 'a': the field '{key}' is not read"):
        read_dataset(tmp_path / "x.jsonl", tmp_path / "pool.json")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.jsonl.gz", "x.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a Git LFS pointer",
        ),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied', "an XML page"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
        (gzip.compress(_jsonl(ROW).encode(), mtime=0)[:-12], "not a whole gzip file"),
    ],
)
def test_what_stands_in_for_a_file_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        read_dataset(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_misspelt_unit_of_prices_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text(_jsonl(ROW))
    targets = [{"name": name, "input_price": 1, "output_price": 2} for name in "ab"]
    pool = {"targets": targets, "price_units": "USD per 1K tokens"}
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    with pytest.raises(ValueError, match="pool.json: the field 'price_units' is not read"):
        read_dataset(tmp_path / "x.jsonl", tmp_path / "pool.json")


@pytest.mark.parametrize(
    "column", ["a|anything", "query|length", "b|total_cost", "b|model_response", "dollars|a"]
)
def test_a_column_behind_another_is_no_target(tmp_path, caplog, column):
    (tmp_path / "x.csv").write_text(f"query,a,{column}\nq?,1,0.5\n")
    assert read_dataset(tmp_path / "x.csv").targets == ("a",)
    assert f"fields that are not read: '{column}' (1 rows)" in caplog.text


def test_a_pool_of_other_targets_is_refused_with_both_names(tmp_path):
    (tmp_path / "x.jsonl").write_text(_jsonl(ROW))
    pool = {"targets": [{"name": "z", "input_price": 1, "output_price": 2}]}
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    with pytest.raises(ValueError, match=r"of any target, but of 'a' \(1 outcomes\), 'b'"):
        read_dataset(tmp_path / "x.jsonl", tmp_path / "pool.json")


def test_targets_are_taken_and_left_out_by_name(tmp_path, caplog):
    (tmp_path / "x.csv").write_text("query,a,b,c,notes\nq?,1,0,1,hm\n")
    assert read_dataset(tmp_path / "x.csv", targets=("c", "a")).targets == ("a", "c")
    assert "left out: 'b'" in caplog.text
    assert read_dataset(tmp_path / "x.csv", exclude_targets=("b", "notes")).targets == ("a", "c")
    with pytest.raises(ValueError, match="targets: there is no 'd': the data have a"):
        read_dataset(tmp_path / "x.csv", targets=("d", "a"))
    with pytest.raises(ValueError, match="targets: there is no 'd': the data have a"):
        read_dataset(tmp_path / "x.csv", exclude_targets=("notes", "d"))
