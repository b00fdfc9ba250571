"""Joins the rows of several files, by id or by text."""

import logging
from collections.abc import Sequence

from routerjax.data.columns import Columns
from routerjax.data.groups import normalised

logger = logging.getLogger(__name__)


def joined(sides: Sequence[tuple[str, Columns]]) -> Columns:
    """The rows of all files; those of one query are one row, with the outcomes of all.

    A file is joined by id where any of its ids is that of an earlier file, else by text. Rows whose
    ids were made from their texts are joined by text, and so is, the other way round, whatever is
    joined to them. Where both name datasets, texts are equal only within one.

    Args:
      sides: What each file is called, and its rows.

    Raises:
      ValueError: An id has two texts, a text without an id has several ids in another file, or no
        row of a file can be found in any other and it has no texts.
    """
    whole = sides[0][1].empty()
    texts = [side for side in sides if any(query is not None for query in side[1].queries)]
    # Files without texts come last: their ids must be known by then.
    for path, side in [*texts, *(side for side in sides if side not in texts)]:
        _add(path, side, whole)
    return whole


def _add(path: str, side: Columns, whole: Columns) -> None:
    by_id = any(n in whole.ids for at, n in enumerate(side.names) if at not in side.unnamed)
    rows: list[int] = []
    taken: set[int] = set()
    missing = 0
    apart: list[str] = []
    n_before = len(whole)
    for at, name in enumerate(side.names):
        query, where = side.queries[at], side.where[at]
        named = at not in side.unnamed
        found = whole.ids.get(name) if named else None
        if found is None and query is not None and n_before:
            if not (named and by_id):
                found = _by_text(side, at, whole, taken, n_before)
            if found is None and named:
                # A row of an earlier file that had no id takes this one.
                found = _by_text(side, at, whole, taken, n_before, unnamed=True)
        if found is None and query is None:
            missing += 1
            rows.append(-1)
            continue
        if found is None:
            apart.append(str(query))
            found = whole.take(name, query, side.datasets[at], side.groups[at], where, named)
        else:
            try:
                whole.merge(found, query, side.datasets[at], side.groups[at], where, joining=True)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if named and found in whole.unnamed:
                whole.rename(found, name)
        taken.add(found)
        rows.append(found)
    if missing == len(rows) and rows:
        raise ValueError(
            f"{path}: none of its {missing:,} ids, such as {side.names[0]!r}, is that of a "
            f"query: give --data a file with the texts of these ids too"
        )
    if missing:
        logger.warning("%s: ids without a query, left out: %d of %d", path, missing, len(rows))
    if apart and n_before:
        texts = {str(query) for query in whole.queries[:n_before]}
        known = set(map(normalised, texts))
        alike = [query for query in apart if query not in texts and normalised(query) in known]
        if alike:
            logger.warning(
                "%s: queries that differ from one of another file in case, white space or Unicode "
                "form alone, and are rows of their own: %d, such as %r",
                path, len(alike), alike[0][:80],
            )  # fmt: skip
    whole.take_cells(side, rows)


def _by_text(
    side: Columns, at: int, whole: Columns, taken: set[int], n_before: int, unnamed: bool = False
) -> int | None:
    """The row of an earlier file with the same text, in the same dataset where both name one."""
    query, dataset = side.queries[at], side.datasets[at]
    fitting = [
        row
        for row in whole.rows_of_text.get(str(query), ())
        if row < n_before
        and (dataset is None or whole.datasets[row] in (None, dataset))
        and (not unnamed or row in whole.unnamed)
    ]
    free = [row for row in fitting if row not in taken]
    if len(free) > 1 or (fitting and not free):
        # As often in both: in their order.
        own = [row for row in side.rows_of_text[str(query)]
               if dataset is None or side.datasets[row] in (None, dataset)]  # fmt: skip
        if len(own) != len(fitting):
            names = [whole.names[row] for row in fitting]
            raise ValueError(
                f"{side.where[at]}: this text is that of the ids {', '.join(names[:3])} in another "
                f"file: give this file ids, or datasets, too"
            )
    return free[0] if free else None
