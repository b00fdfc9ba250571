"""Files and lines of queries to route, and conversations."""

import copy
import json
import pickle

import numpy as np
import pytest

from routerjax.data.conversation import Conversation, as_query
from routerjax.data.queries import parse_queries, read_queries
from routerjax.data.readers import read_dataset
from routerjax.data.writers import write_dataset

TURNS = [
    {"role": "system", "content": "You are a Go expert."},
    {"role": "user",
     "content": [{"type": "text", "text": "Write"}, {"type": "text", "text": "it."}]},
    {"role": "assistant", "content": None,
     "tool_calls": [{"id": "1", "function": {"name": "run", "arguments": "{}"}}]},
    {"role": "user", "content": "commit it"},
]  # fmt: skip
TEXT = "system: You are a Go expert.\n\nuser: Write\nit.\n\nassistant: run({})\n\nuser: commit it"
IMAGE = {"role": "user", "content": [
    {"type": "text", "text": "What?"},
    {"type": "image_url", "image_url": {"url": "data:,"}},
]}  # fmt: skip

FILES = {
    "JSON lines": ('{"id": 7, "query": "Which?\\nA."}\n', [("7", "Which?\nA.")]),
    "RouterArena's": ('{"global index": "m_12", "prompt": "Which?"}\n', [("m_12", "Which?")]),
    "messages": (json.dumps({"id": "c", "messages": TURNS}), [("c", TEXT)]),
    "messages as query": (json.dumps({"id": "c", "query": TURNS}), [("c", TEXT)]),
    "a list": (json.dumps([{"id": "a", "query": "q?"}], indent=1), [("a", "q?")]),
    "an object of several lines": (json.dumps({"id": "a", "query": "q?"}, indent=1), [("a", "q?")]),
    "CSV": ('id,query\n1,"Which?\nA."\n', [("1", "Which?\nA.")]),
    "CSV of another name": ("prompt_id,prompt\n1,q?\n", [("1", "q?")]),
    "no id": ('{"query": "q?"}\n', [("d2ae2d8ea7b1c39f", "q?")]),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_queries(tmp_path, case):
    content, expected = FILES[case]
    (tmp_path / "x").write_text(content)
    read = list(read_queries(tmp_path / "x"))
    assert [query for _, query in read] == [query for _, query in expected]
    if case == "no id":
        assert read[0].id == read_dataset_id(tmp_path)
    else:
        assert [name for name, _ in read] == [name for name, _ in expected]


def read_dataset_id(folder):
    (folder / "y.csv").write_text("query,a\nq?,1\n")
    return read_dataset(folder / "y.csv").ids[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"id": "a"}\n', 'x:1: expected an object with "query" or "messages", got one with .id'),
        ('{"query": "a"}\n{"query": " "}\n', "x:2: query: expected a text that is not empty"),
        ('{"query": "a"}\nWhy?\n', "x:2: not valid JSON"),
        ('{"messages": []}\n', "x:1: messages: expected a text in one of them at least"),
        ('{"messages": [{"role": "boss", "content": "a"}]}\n', r"x:1: messages\[0\]: .*a role of"),
        ('{"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}\n',
         r"x:1: messages\[0\]: content: expected parts"),
        ("text,answer\na,b\n", "x:1: expected a column query"),
        ("\n", "x: expected at least one query, the file has none"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, content, reason):
    (tmp_path / "x").write_text(content)
    with pytest.raises(ValueError, match=reason):
        list(read_queries(tmp_path / "x"))


def test_lines_that_are_objects_are_never_texts():
    lines = ["What?", '{"global index": "m_12", "query": "Which?\\nA."}', "{not JSON}", "[1]"]
    read = list(parse_queries((f"line {i}", line) for i, line in enumerate(lines, 1)))
    assert read == [(None, "What?"), ("m_12", "Which?\nA."), (None, "{not JSON}"), (None, "[1]")]
    assert list(parse_queries([("line 1", json.dumps(TURNS))])) == [(None, TEXT)]
    with pytest.raises(ValueError, match='line 1: expected an object with "query"'):
        list(parse_queries([("line 1", '{"text": "What?"}')]))


@pytest.mark.parametrize("first", ["{", "[", " [{", "id,query", 'dataset,"prompt", prompt_id'])
def test_tables_and_json_of_several_lines_are_no_texts(first):
    """json.dumps(rows, indent=2) or a CSV file on standard input: no line of it is a query."""
    with pytest.raises(ValueError, match="line 1: .* several lines.* by --queries"):
        list(parse_queries([("line 1", first), ("line 2", "What?")]))


def test_parts_of_calls_and_their_results_are_texts():
    """As Anthropic's API has them."""
    call = {"role": "assistant", "content": [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "1", "name": "run", "input": {"a": 1}},
    ]}  # fmt: skip
    results = [{"type": "tool_result", "tool_use_id": "1", "content": "done"},
               {"type": "tool_result", "tool_use_id": "1", "content": IMAGE["content"]},
               {"type": "tool_result", "tool_use_id": "1"}]  # fmt: skip
    made = as_query([TURNS[0], call, {"role": "user", "content": results}])
    assert made.turns[1:] == (("assistant", 'I look.\nrun({"a": 1})'), ("user", "done\nWhat?\n"))
    assert made.modalities == ("image",)
    results[0]["content"] = 7
    with pytest.raises(ValueError, match=r"messages\[0\]: content: expected parts .* got 7"):
        as_query([{"role": "user", "content": results}])
    results[0]["content"] = results[1:2]
    with pytest.raises(ValueError, match=r"messages\[0\]: content: a tool_result lies within"):
        as_query([{"role": "user", "content": results}])


def test_a_call_of_a_function_is_a_text():
    call = {"role": "assistant", "content": None,
            "function_call": {"name": "run", "arguments": "{}"}}  # fmt: skip
    answer = {"role": "function", "name": "run", "content": "done"}
    assert as_query([TURNS[0], call, answer]).turns[1:] == (
        ("assistant", "run({})"), ("function", "done"),
    )  # fmt: skip


def test_a_conversation_is_its_turns_and_a_text():
    made = as_query(TURNS)
    assert isinstance(made, Conversation) and made == TEXT and made.modalities == ()
    assert [role for role, _ in made.turns] == ["system", "user", "assistant", "user"]
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made and again.turns == made.turns


def test_one_user_turn_of_text_is_that_text():
    assert type(as_query([{"role": "user", "content": "q?"}])) is str
    made = as_query([IMAGE])
    assert isinstance(made, Conversation) and made.modalities == ("image",)


def test_messages_without_text_are_refused_or_empty():
    alone = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(ValueError, match="expected a text in one of them"):
        as_query(alone)
    made = as_query(alone, text_needed=False)
    assert made == "" and made.modalities == ("image",)


def test_conversations_are_rows_that_are_written_as_they_were(tmp_path):
    rows = [{"id": "c1", "query": TURNS, "correct": {"a": 1}},
            {"id": "c2", "messages": [IMAGE], "correct": {"a": 0}},
            {"id": "c3", "query": "q?", "correct": {"a": 0}}]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_dataset(tmp_path / "x.jsonl")
    assert data.queries[0] == TEXT
    write_dataset(data, tmp_path / "y.jsonl")
    again = read_dataset(tmp_path / "y.jsonl")
    assert [getattr(q, "messages", q) for q in again.queries] == [(*TURNS,), (IMAGE,), "q?"]
    np.testing.assert_array_equal(again.y_NM, data.y_NM)


def test_messages_and_a_query_are_refused(tmp_path):
    row = {"id": "c", "query": "q?", "messages": TURNS, "correct": {"a": 1}}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="x.jsonl:1: query: there are messages too"):
        read_dataset(tmp_path / "x.jsonl")
