"""rows.json: which query lies where."""

import numpy as np
import pytest

from routerjax.runtime.files import Folder
from routerjax.store.rows import StoreRows


def test_rows_come_back_as_they_were(tmp_path):
    rows = StoreRows(
        ids=("é", "a\0", "b"),
        n_tokens_N=np.array([3, 5, 512]),
        query_tokens_N=np.array([1, 3, 700]),
        truncated_N=np.array([False, False, True]),
    )
    digest = rows.save(Folder(tmp_path))
    again = StoreRows.load(Folder(tmp_path), digest)
    assert again.ids == rows.ids
    for name, dtype in (("n_tokens_N", "int64"), ("query_tokens_N", "int64"), ("truncated_N", "?")):
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
        assert getattr(again, name).dtype == np.dtype(dtype)


def test_without_the_file_the_error_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.json is missing.*extract again"):
        StoreRows.load(Folder(tmp_path), "d")
