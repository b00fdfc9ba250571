"""A JSON list that is read value by value is what json.loads makes of it, and so are its errors."""

import json

import pytest

from routerjax.data.readers import read_dataset
from routerjax.data.sources import json_list

LISTS = [
    "[]", " [ ]\n", "[1]", "[12, -3.5e+7,null ,true,\n false]", "[NaN, -Infinity]",
    '["a\\u00e9\\ud83d\\ude00\\\\"]', '[{"a": [1, {"b": "c, ]}"}]}, [], [[2]]]\n\n',
    json.dumps([{"query": "x" * 50, "n": 123456}] * 3, indent=1),
]  # fmt: skip
FAULTY = [
    "[", "[1", "[1, ", "[1 2]", '[\n{"a": 1},\n{"a" 1}]', '["abc', '["\\u12"]', '["\\x"]', "[tru]",
    "[1] x", "[\n1\n]\n]", '["a\nb"]', "[1,, 2]", '[{"a": 1}, {"b": tru', "[-]", "[01]",
    '[{"a": "b"} {"c": 1}]',
]  # fmt: skip


def read(text, size, most=2**20):
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    return list(json_list.values(pieces, json.JSONDecoder(), most))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_it_is_what_json_loads_makes_of_it(size):
    for text in LISTS:
        assert repr(read(text, size)) == repr(json.loads(text))
    for text in FAULTY:
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(text)
        with pytest.raises(json.JSONDecodeError) as error:
            read(text, size)
        assert str(error.value) == str(expected.value), text


def test_a_value_that_does_not_end_is_refused_before_all_of_it_is_read():
    read_on = 0

    def pieces():
        nonlocal read_on
        yield '[1, "'
        while True:
            read_on += 1
            yield "x" * 100

    with pytest.raises(ValueError, match="a value of 0 Mi characters or more: line 1 column 5"):
        list(json_list.values(pieces(), json.JSONDecoder(), 1000))
    assert read_on < 50


def test_a_list_that_is_cut_is_refused_whatever_was_read_before(tmp_path):
    row = {"request_id": "r", "query": "a", "correct": {"m": 1}}
    (tmp_path / "a.json").write_text(json.dumps([row, row])[:-9])
    with pytest.raises(ValueError, match=r"a.json:1: not valid JSON: Expecting .* line 1 column"):
        read_dataset(tmp_path / "a.json")
