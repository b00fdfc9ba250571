"""What is written is read, exactly; a write that fails leaves what was there."""

import dataclasses
import json

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.data.conversation import ROLES, as_query
from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows
from routerjax.data.pool import MODALITIES, write_pool
from routerjax.data.readers import read_dataset
from routerjax.data.writers import write_dataset

NAN = np.nan
OK = json.dumps({"id": "first", "query": "ok", "correct": {"X": 1}})
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
WORDS = TEXTS.filter(str.strip)
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
CALL = {"role": "assistant", "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "run", "arguments": "{}"}}]}  # fmt: skip
PARTS = st.builds(lambda text: {"type": "text", "text": text}, WORDS) | st.just(IMAGE)
TURNS = st.just(CALL) | st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": WORDS | st.lists(PARTS, min_size=1, max_size=2)}
)
CONVERSATIONS = st.builds(
    lambda text, turns: as_query([{"role": "system", "content": text}, *turns]),
    WORDS, st.lists(TURNS, max_size=3),
)  # fmt: skip


@st.composite
def datasets(draw):
    queries = draw(st.lists(WORDS | CONVERSATIONS, min_size=2, max_size=8))
    n = len(queries)
    targets = draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    scores = st.floats(0, 1, width=32) | st.just(NAN)
    y_NM = draw(hnp.arrays(np.float32, (n, len(targets)), elements=scores))
    y_NM[0] = 1  # Every target has an outcome.
    tokens = st.integers(0, 2**24).map(float) | st.just(NAN)
    runs_NM = draw(hnp.arrays(np.int32, y_NM.shape, elements=st.integers(1, 9))) * ~np.isnan(y_NM)

    def of_targets(values, shape=None, dtype=np.float64):
        shape = shape or (len(targets),)
        return draw(hnp.arrays(dtype, shape, elements=values | st.just(NAN)))

    given_groups = draw(st.lists(st.none() | TEXTS, min_size=n, max_size=n))
    return RoutingDataset(
        ids=tuple(draw(st.lists(TEXTS, min_size=n, max_size=n, unique=True))),
        queries=tuple(queries),
        targets=tuple(targets),
        y_NM=y_NM,
        groups=group_rows(queries, given_groups),
        datasets=draw(st.none() | st.lists(TEXTS, min_size=n, max_size=n).map(tuple)),
        output_tokens_NM=of_targets(tokens, y_NM.shape, np.float32),
        input_tokens_NM=of_targets(tokens, y_NM.shape, np.float32),
        cached_input_tokens_NM=of_targets(tokens, y_NM.shape, np.float32),
        costs_NM=of_targets(st.floats(0, 1e3), y_NM.shape),
        confidences_NM=of_targets(st.floats(0, 1, width=32), y_NM.shape, np.float32),
        runs_NM=runs_NM if (runs_NM > 1).any() else None,
        prices_M2=of_targets(st.floats(0, 1e6), (len(targets), 2)),
        cached_prices_M=of_targets(st.floats(0, 1e6)),
        context_windows_M=of_targets(st.integers(1, 2**40).map(float)),
        modalities=tuple(
            tuple(name for name in MODALITIES if draw(st.booleans())) for _ in targets
        ),
    )


@hypothesis.settings(max_examples=30)
@hypothesis.given(datasets(), st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
def test_what_is_written_is_read(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("round")
    write_dataset(data, folder / name)
    write_pool(data, folder / "pool.json")
    again = read_dataset(folder / name, folder / "pool.json")
    for field in ("ids", "queries", "targets", "groups", "datasets"):
        assert getattr(again, field) == getattr(data, field), field
    for one, two in zip(data.queries, again.queries, strict=True):
        assert getattr(one, "messages", one) == getattr(two, "messages", two)
    for field in dataclasses.fields(data):
        expected, read = getattr(data, field.name), getattr(again, field.name)
        if isinstance(expected, np.ndarray) and read is not None:
            np.testing.assert_array_equal(read, expected, err_msg=field.name)
        elif isinstance(expected, np.ndarray):
            assert np.isnan(expected).all(), field.name
        else:
            assert read == expected or not any(expected), field.name
    if len(set(data.groups)) > 1:
        assert again.split(0.5, seed=1)[0].ids == data.split(0.5, seed=1)[0].ids
    assert sorted(path.name for path in folder.iterdir()) == [name, "pool.json"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(OK)
    data = read_dataset(path)
    object.__setattr__(data, "queries", (object(),))
    with pytest.raises(TypeError):
        write_dataset(data, path)
    assert path.read_text() == OK and [p.name for p in path.parent.iterdir()] == ["a.jsonl"]


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(OK)
    data = read_dataset(tmp_path / "a.jsonl")
    with pytest.raises(OSError, match="nowhere"):
        write_dataset(data, tmp_path / "nowhere" / "a.jsonl")
