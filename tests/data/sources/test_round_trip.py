"""Any data set, written in any of the layouts that are read, is read back as it was."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows
from routerjax.data.readers import read_dataset
from tests.data.sources.layouts import LAYOUTS

NAN = np.nan
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
NAMES = st.from_regex(r"m[a-f0-9]{1,3}(/[a-f]{2}|-v\.[0-9])?", fullmatch=True)


@st.composite
def datasets(draw):
    queries = tuple(draw(st.lists(TEXTS, min_size=2, max_size=6, unique=True)))
    n = len(queries)
    targets = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)))
    shape = (n, len(targets))
    y_NM = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32) | st.just(NAN)))
    y_NM[0] = 1  # Every target has an outcome.

    def counts(dtype, values):
        return draw(hnp.arrays(dtype, shape, elements=values | st.just(NAN)))

    return RoutingDataset(
        ids=tuple(draw(st.lists(TEXTS, min_size=n, max_size=n, unique=True))),
        queries=queries,
        targets=targets,
        y_NM=y_NM,
        groups=group_rows(queries),
        datasets=tuple(draw(st.sampled_from(["mmlu", "gsm8k"])) for _ in range(n)),
        output_tokens_NM=counts(np.float32, st.integers(0, 2**24).map(float)),
        input_tokens_NM=counts(np.float32, st.integers(0, 2**24).map(float)),
        costs_NM=counts(np.float64, st.floats(0, 1e3)),
        confidences_NM=counts(np.float32, st.floats(0, 1, width=32)),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@hypothesis.settings(max_examples=12)
@hypothesis.given(data=datasets())
def test_what_is_written_is_read(tmp_path_factory, layout, data):
    write, kept, keeps_ids, binary = LAYOUTS[layout]
    again = read_dataset(write(data, tmp_path_factory.mktemp("round")))
    again = again.select_targets(data.targets)
    row_of = {query: i for i, query in enumerate(again.queries)}
    again = again.select([row_of[query] for query in data.queries])
    assert len(row_of) == len(data)
    if keeps_ids:
        assert again.ids == data.ids
    if layout != "routellm":
        assert again.datasets == data.datasets
    assert again.runs_NM is None
    y_NM = np.where(np.isnan(data.y_NM), NAN, data.y_NM >= 0.5) if binary else data.y_NM
    np.testing.assert_array_equal(again.y_NM, y_NM)
    for name, field in (("output", "output_tokens_NM"), ("input", "input_tokens_NM"),
                        ("cost", "costs_NM"), ("confidence", "confidences_NM")):  # fmt: skip
        expected = getattr(data, field)
        if name not in kept or np.isnan(expected).all():
            expected = None
        found = getattr(again, field)
        assert (found is None) == (expected is None), field
        if expected is not None:
            np.testing.assert_array_equal(found, expected, err_msg=field)
