"""RouterBench's table: scores, answers and costs of each model beside its prompts.

Its pickles are not read: `pandas.read_pickle(...).to_parquet(...)` or `.to_csv(..., index=False)`
makes what is.
"""

import pathlib
from collections.abc import Iterator

from routerjax.data.sources.files import Row, Source, Start, Wanted, open_table
from routerjax.data.sources.wide import read_scores

_NAMED = {"query": "prompt", "id": "sample_id", "dataset": "eval_name"}


def _is_file(start: Start) -> bool:
    return set(_NAMED.values()) <= set(start.header)


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    answers = [name for name in open_table(path).header if name.endswith("|model_response")]
    return read_scores(path, wanted, _NAMED, ("oracle_model_to_route_to", *answers))


SOURCE = Source(_read, _is_file)
