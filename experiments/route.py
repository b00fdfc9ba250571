"""Routes queries: a JSON decision a line.

python -m experiments.route --router=runs/quickstart/router --query="What is 17 * 23?"
python -m experiments.route --router=runs/quickstart/router --policy=tolerance:0.2 < queries.txt
python -m experiments.route --router=runs/quickstart/router --queries=prompts.jsonl

--queries names a file of JSON lines or a CSV table (`rj.read_queries`); each decision has the id of
its query. On standard input each line is a query; a line that is a JSON object is one of such a
file. Decisions go to standard output; with --workdir flags and versions go there as config.json.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator

import routerjax as rj
from experiments import options

# Lines of standard input routed together, and the bytes of one that are too many.
_CHUNK, _LONGEST = 256, 2**28


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str | None
    seed: int
    router: str
    policy: str
    encoder: str | None
    query: str | None = options.flag(
        None, "The query; without it and --queries every line of standard input is one."
    )
    queries: str | None = options.flag(None, "File of queries: JSON lines or CSV, with ids.")
    allowed: list[str] = options.flag([], "Only these targets may answer, separated by commas.")


options.define(Config)


def lines() -> Iterator[tuple[str, str]]:
    """The lines of standard input that are not empty, without their ends, and where each is.

    Raises:
      ValueError: A line is not UTF-8 or too long; what came before it has been given out.
    """
    for number, raw in enumerate(iter(lambda: sys.stdin.buffer.readline(_LONGEST), b""), 1):
        if len(raw) == _LONGEST:
            raise ValueError(
                f"standard input, line {number}: {_LONGEST >> 20} MiB or more: expected one query"
            )
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input, line {number}: not UTF-8: {error}") from error
        if line.strip():
            yield f"standard input, line {number}", line


def chunks(queries: Iterator[rj.Query], size: int) -> Iterator[list[rj.Query]]:
    """Up to `size` queries at a time; those before a faulty one too."""
    chunk: list[rj.Query] = []
    try:
        for query in queries:
            chunk.append(query)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except ValueError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def main() -> None:
    """Prints decisions as they are made."""
    config = options.read(Config)
    policy = options.own_policy(config)
    router = rj.Router.load(config.router)
    if config.encoder:
        router.use_encoder(options.load_router_encoders(router, config.encoder, "data:1"))
    if config.workdir is not None:
        rj.write_config(config.workdir, config, alone=False)
    if config.query is not None and config.queries is not None:
        raise ValueError("--query is one query, --queries a file of them: give one of the two")
    if config.queries is not None:
        queries = rj.read_queries(config.queries)
    else:
        queries = rj.parse_queries(
            lines() if config.query is None else [("--query", config.query)]
        )  # fmt: skip
    at_once = 1 if config.queries is None and sys.stdin.isatty() else _CHUNK
    for chunk in chunks(queries, at_once):
        texts, allowed = [each.query for each in chunk], config.allowed or None
        decisions: Iterable[rj.Decision]
        try:
            decisions = router.route(texts, policy, allowed)
        except ValueError:
            # One of them cannot be routed: those before it are, and its error comes in its place.
            decisions = (router.route(text, policy, allowed) for text in texts)
        for each, decision in zip(chunk, decisions, strict=True):
            named = {} if each.id is None else {"id": each.id}
            value = named | {"query": each.query} | decision.to_json()
            print(json.dumps(value, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    rj.run_script(main)
