"""POST /v1/outcomes: what callers say of an answer, appended to a file that `read_dataset` reads.

A row of the file is an outcome, {"id", "correct": {target: score}, "request_id"}, and with
--log_queries "query" (a text or messages) too. The id is that of `read_dataset` for a text without
one, a digest of it: the outcomes of one query are then one row of the data set, and a file with the
texts alone is joined to these outcomes.
"""

import collections
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
from typing import IO, Annotated, Any

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from routerjax.data.conversation import Conversation, text_id
from routerjax.runtime.files import is_json
from routerjax.runtime.resume import append
from routerjax.serving.errors import Problem

logger = logging.getLogger(__name__)

# Requests that still may get an outcome, and bytes of their queries; the oldest are forgotten.
_MOST_REQUESTS = 100_000
_MOST_BYTES = 64 * 2**20
_STEP_BYTES = 4096
# How every row begins, and bytes at most of a row that is whole but for its line end.
_ROW, _MOST_LEFT = b'{"id":', 2**26


class OutcomeRequest(pydantic.BaseModel, extra="forbid"):
    """An outcome.

    Attributes:
      request_id: Of the answer: `metadata.request_id` or the header x-routerjax-request-id.
      target: Whose answer it was; None for the target that was chosen.
      score: From 0 (wrong) to 1 (right).
    """

    request_id: str
    target: str | None = None
    score: Annotated[float, pydantic.Field(ge=0, le=1)]


@dataclasses.dataclass
class _Open:
    """A request that may get outcomes: its target, its row's first fields, who has a score."""

    target: str
    start: bytes
    scored: set[str] = dataclasses.field(default_factory=set)


class Outcomes:
    """The outcomes of requests that this server answered.

    Args:
      path: The file; made where there is none.
      targets: Names that an outcome may be of.
      log_queries: Whether the texts of queries are written too.

    Raises:
      ValueError: It is another file than one of outcomes, see `append_line`.
      OSError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], targets: tuple[str, ...], log_queries: bool):
        self._path, self._targets, self._log_queries = pathlib.Path(path), targets, log_queries
        self._open: collections.OrderedDict[str, _Open] = collections.OrderedDict()
        self._n_bytes = 0
        append_line(self._path, b"")

    def open(self, request_id: str, query: str, target: str) -> None:
        """Lets a request have outcomes, until too many others have come.

        Args:
          request_id: Which the caller was given.
          query: What was asked; empty where no text was read: such a request gets none.
          target: Who answers.
        """
        if not query.strip():
            return
        row: dict[str, Any] = {"id": text_id(query)}
        if self._log_queries:
            row["query"] = query.messages if isinstance(query, Conversation) else query
        opened = _Open(target, json.dumps(row).encode()[:-1])
        self._open[request_id] = opened
        self._n_bytes += len(opened.start)
        while len(self._open) > _MOST_REQUESTS or self._n_bytes > _MOST_BYTES:
            self._n_bytes -= len(self._open.popitem(last=False)[1].start)

    async def __call__(self, request: Request, body: bytes) -> Response:
        """Takes an outcome."""
        asked = OutcomeRequest.model_validate_json(body)
        opened = self._open.get(asked.request_id)
        if opened is None:
            raise Problem(
                404, f"request_id: expected that of an answer of this server to a request with a "
                f"text, the last {_MOST_REQUESTS:,} at most, got {asked.request_id!r}",
                "request_not_found", "request_id",
            )  # fmt: skip
        target = asked.target or opened.target
        if target not in self._targets:
            raise ValueError(f"target: expected one of {', '.join(self._targets)}, got {target!r}")
        if target in opened.scored:
            raise Problem(
                409, f"request_id: {asked.request_id!r} has an outcome of {target!r} already",
                "already_scored", "request_id",
            )  # fmt: skip
        row = {"correct": {target: asked.score}, "request_id": asked.request_id}
        line = opened.start + b", " + json.dumps(row).encode()[1:] + b"\n"
        try:
            append_line(self._path, line)
        except OSError as error:
            logger.error("an outcome was refused: %s", error)
            text = "the outcome cannot be kept now, see the server's log: send it again later"
            raise Problem(503, text, "not_kept") from error
        opened.scored.add(target)
        return JSONResponse(asked.model_dump() | {"target": target})


def append_line(path: pathlib.Path, line: bytes) -> None:
    """Appends a line, whole or not at all, while other processes may append theirs.

    What a process that was killed left of a line is cut off first; a whole row that only lacks its
    line end, as editors leave one, gets it.

    Args:
      path: Of the file; made where there is none.
      line: With its line end; empty to do no more than that.

    Raises:
      ValueError: The file ends in what is no part of a row: it is another file.
      OSError: The file cannot be written.
    """
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Until it is closed.
        end = _end_of_lines(file)
        file.seek(end)
        left = file.read(_MOST_LEFT)
        begins = left.lstrip(b"\0")  # Which a machine leaves that lost its power.
        if begins and not begins.startswith(_ROW[: len(begins)]):
            raise ValueError(
                f"{path}: expected a file of outcomes, got one whose last line has no end and "
                f"begins {begins[:20].decode(errors='replace')!r}: name another file, or end the "
                f"line"
            )
        if is_json(left):
            file.write(b"\n")
            end += len(left) + 1
        file.truncate(end)
        append(file.fileno(), line, path)


def _end_of_lines(file: IO[bytes]) -> int:
    """The position behind the last line end."""
    at = file.seek(0, os.SEEK_END)
    while at:
        start = max(0, at - _STEP_BYTES)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0
