"""What is written is read, exactly; a write that fails leaves what was there."""

import json

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows
from routerjax.data.pool import write_pool
from routerjax.data.readers import read_dataset
from routerjax.data.writers import write_dataset

NAN = np.nan
OK = json.dumps({"id": "first", "query": "ok", "correct": {"X": 1}})
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@st.composite
def datasets(draw):
    queries = draw(st.lists(TEXTS.filter(str.strip), min_size=2, max_size=8))
    n = len(queries)
    targets = draw(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3, unique=True))
    scores = st.floats(0, 1, width=32) | st.just(NAN)
    y_NM = draw(hnp.arrays(np.float32, (n, len(targets)), elements=scores))
    y_NM[0] = 1  # Every target has an outcome.
    tokens = st.integers(0, 2**24).map(float) | st.just(NAN)
    given_groups = draw(st.lists(st.none() | TEXTS, min_size=n, max_size=n))
    return RoutingDataset(
        ids=tuple(draw(st.lists(TEXTS, min_size=n, max_size=n, unique=True))),
        queries=tuple(queries),
        targets=tuple(targets),
        y_NM=y_NM,
        groups=group_rows(queries, given_groups),
        datasets=draw(st.none() | st.lists(TEXTS, min_size=n, max_size=n).map(tuple)),
        output_tokens_NM=draw(hnp.arrays(np.float32, y_NM.shape, elements=tokens)),
        prices_M2=draw(
            hnp.arrays(np.float64, (len(targets), 2), elements=st.floats(0, 1e6) | st.just(NAN))
        ),
    )


@hypothesis.given(datasets(), st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
def test_what_is_written_is_read(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("round")
    write_dataset(data, folder / name)
    write_pool(data, folder / "pool.json")
    again = read_dataset(folder / name, folder / "pool.json")
    for field in ("ids", "queries", "targets", "groups", "datasets"):
        assert getattr(again, field) == getattr(data, field), field
    for field in ("y_NM", "prices_M2"):
        np.testing.assert_array_equal(getattr(again, field), getattr(data, field))
    if again.output_tokens_NM is None:
        assert np.isnan(data.output_tokens_NM).all()
    else:
        np.testing.assert_array_equal(again.output_tokens_NM, data.output_tokens_NM)
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
