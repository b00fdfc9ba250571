"""Reads outcome files, in the formats of `FORMATS`.

Every error names the file and the line. A line that does not fit its format is refused, because a
row dropped in silence would change every number computed from the file.
"""

import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from routerjax.data.columns import Columns
from routerjax.data.dataset import RoutingDataset
from routerjax.data.joined import joined
from routerjax.data.pool import Pool, read_pool
from routerjax.data.queries import QUERY_NAMES
from routerjax.data.sources import (
    embedllm,
    inspect_ai,
    jsonl,
    llmrouter,
    llmrouterbench,
    lm_eval,
    long,
    openai_batch,
    routellm,
    routerbench,
    swe_bench,
    wide,
)
from routerjax.data.sources.files import Source, Wanted, start_of

# A file or folder is read by the first that recognises it.
FORMATS: dict[str, Source] = {
    "jsonl": jsonl.SOURCE,
    "lm_eval": lm_eval.SOURCE,
    "inspect_ai": inspect_ai.SOURCE,
    "llmrouterbench": llmrouterbench.SOURCE,
    "llmrouter": llmrouter.SOURCE,
    "swe_bench": swe_bench.SOURCE,
    "openai_batch": openai_batch.SOURCE,
    "long": long.SOURCE,
    "embedllm": embedllm.SOURCE,
    "routerbench": routerbench.SOURCE,
    "routellm": routellm.SOURCE,
    "wide": wide.SOURCE,
}


def read_dataset(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    pool: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    targets: Collection[str] | None = None,
    exclude_targets: Collection[str] = (),
    metric: str | None = None,
) -> RoutingDataset:
    """Reads queries and outcomes.

    Formats, recognised by their content; each may be gzipped:
      jsonl: one object a line, {"id", "query", "correct": {target: score or null}} and, where
        known, "dataset", "group", and of each target "output_tokens", "input_tokens" (the cached
        ones included), "cached_input_tokens", "cost" (USD), "confidence" (how sure the target
        was of its answer, in [0, 1]) and "runs" (of which the score is the mean).
      long: CSV, parquet or JSON objects with columns question, model, isCorrect, a line for each
        answer, and perhaps those fields.
      wide: the same with a column query and a column for each target, and perhaps
        TARGET|cost, TARGET|output_tokens, ... beside it.
      lm_eval, inspect_ai, llmrouterbench, swe_bench, openai_batch, embedllm, routerbench,
        routellm, llmrouter: what these tools write (see the modules of data/sources). The first
        five may be folders.
    The first three may have id, dataset and group; without id it is a digest of the text. An empty
    cell is a missing outcome.

    Args:
      path: A file or folder; or several, whose rows are joined by id or by text (`joined`). Of
        several, one may have only queries, another only outcomes or tokens by id.
      pool: A pool.json with the targets and their prices. It decides which targets there are and
        their order; without it they are those of the file, in order of appearance, unpriced.
      format: A name of the above; None to recognise it.
      targets: Those to read, by name; None for all, of the pool or the file.
      exclude_targets: Those not to read.
      metric: The score to read where answers have several: a metric of lm_eval ("acc_norm"), with
        its filter where there are several ("exact_match,strict-match"), or a scorer of inspect_ai.
        Files and tasks that have no such score are read by their first one, as all are for None.

    Raises:
      ValueError: Anything that is not as described; the text starts with file and line.
      OSError: A file cannot be read.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ValueError("path: expected a file, or several, got none")
    known = None if pool is None else _narrowed(read_pool(pool), targets, exclude_targets)
    names = frozenset((targets or ()) if known is None else known.names)
    excluded = frozenset(exclude_targets)

    skipped: dict[str, int] = {}

    def wanted(name: str) -> bool:
        if known is not None:
            asked_for = name in names
        else:
            asked_for = (targets is None or name in names) and name not in excluded
        if not asked_for:
            skipped[name] = 0
        return asked_for

    sources = [_of_its_kind(pathlib.Path(p), _source, format) for p in paths]
    if metric is not None and not any(source.read_metric for source in sources):
        formats = [name for name, source in FORMATS.items() if source.read_metric]
        raise ValueError(
            f"metric: answers of {', '.join(map(str, paths))} have one score each, which is read; "
            f"only those of {' and '.join(formats)} have several: leave {metric!r} out"
        )
    read = [
        (str(p), _of_its_kind(pathlib.Path(p), _columns, source, wanted, metric, len(paths) > 1))
        for p, source in zip(paths, sources, strict=True)
    ]
    columns = read[0][1] if len(read) == 1 else joined(read)
    # Some readers do not even open what is of these.
    columns.left_out = skipped | columns.left_out
    try:
        data = columns.finish(known, len(read) > 1)
    except ValueError as error:
        raise ValueError(f"{', '.join(name for name, _ in read)}: {error}") from error
    if known is None:
        there = (*data.targets, *skipped)
        _refuse_unknown(
            there, [*(targets or ()), *exclude_targets], f"the data have {', '.join(there)}"
        )
    return data


def _of_its_kind(path: pathlib.Path, read: Callable[..., Any], *more: Any) -> Any:
    """What a function reads of a file; of values of another kind than its format's an error."""
    try:
        return read(path, *more)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # Of a text where an object belongs, for one, any.
        raise ValueError(
            f"{path}: a value in it is not of the kind that its format has there: {error!r:.200}"
        ) from error


def _columns(
    path: pathlib.Path, source: Source, wanted: Wanted, metric: str | None, several: bool
) -> Columns:
    """The rows of one file or folder."""
    columns = Columns(wanted, source.long, several or source.partial)
    if metric is None or source.read_metric is None:
        rows = source.read(path, wanted)
    else:
        rows = source.read_metric(path, wanted, metric)
    for where, row in rows:
        try:
            columns.add(where, row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not len(columns):
        raise ValueError(f"{path}: expected at least one query, the file has none")
    if source.partial and not several:
        raise ValueError(
            f"{path}: such a file has no texts of queries: give the file that has them too, they "
            f"are joined by id"
        )
    columns.unread.say(str(path))
    return columns


def _source(path: pathlib.Path, name: str | None) -> Source:
    """The format of a file or folder."""
    if name is not None and name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    if name is not None:
        return FORMATS[name]
    if path.is_dir():
        for source in FORMATS.values():
            if source.folder(path):
                return source
        raise ValueError(f"{path}: a folder with no files of a known format: {', '.join(FORMATS)}")
    start = start_of(path)
    _refuse_columnwise(path, start.value)
    for source in FORMATS.values():
        if source.file(start):
            return source
    if start.header:
        raise ValueError(
            f"{path}:1: expected the columns {', '.join(long.COLUMNS)} (long) or query and a "
            f"column for each target (wide), got {', '.join(start.header)}"
        )
    # An empty file, or one whose first line is faulty: its reader names the line.
    return FORMATS["jsonl"]


def _refuse_columnwise(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Refuses a table that pandas wrote as one object, not as one a row."""
    columns = [value.get(name) for name in QUERY_NAMES]
    by_column = any(isinstance(cells, dict) and "content" not in cells for cells in columns)
    rows = isinstance(value.get("data"), list) and bool({"columns", "schema"} & value.keys())
    if by_column or rows:
        raise ValueError(
            f"{path}: expected an object for each query, got one for the whole table: write it "
            f"by pandas' to_json(..., orient='records', lines=True)"
        )


def _narrowed(pool: Pool, targets: Collection[str] | None, excluded: Collection[str]) -> Pool:
    has = f"the pool has {', '.join(pool.names)}"
    _refuse_unknown(pool.names, [*(targets or ()), *excluded], has)
    names, without = frozenset(pool.names if targets is None else targets), frozenset(excluded)
    return pool.take(tuple(name for name in pool.names if name in names and name not in without))


def _refuse_unknown(known: Collection[str], named: Collection[str], has: str) -> None:
    known = frozenset(known)
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ValueError(f"targets: there is no {unknown[0]!r}: {has}")
