"""Routes queries: a JSON decision a line.

python -m experiments.route --router=runs/quickstart/router --query="What is 17 * 23?"
python -m experiments.route --router=runs/quickstart/router --policy=tolerance:0.2 < queries.txt

Decisions go to standard output; with --workdir the flags and versions go there as config.json.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator

from absl import flags

import routerjax as rj
from experiments import options

# Lines of standard input routed together.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str | None
    seed: int
    router: str
    policy: str
    encoder: str | None
    query: str | None = options.flag(
        None, "The query; without it every line of standard input is one."
    )


options.define(Config)


def lines() -> Iterator[str]:
    """The lines of standard input that are not empty, without their ends.

    Raises:
      ValueError: A line is not UTF-8; what came before it has been given out.
    """
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input, line {number}: not UTF-8: {error}") from error
        if line.strip():
            yield line


def chunks(queries: Iterator[str], size: int) -> Iterator[list[str]]:
    """Up to `size` queries at a time; those before a faulty one too."""
    chunk: list[str] = []
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
    # Without --policy the router's own is used.
    policy = rj.parse_policy(config.policy) if flags.FLAGS["policy"].present else None
    if policy is not None and None in policy.to_json().values():
        raise ValueError(
            f"--policy={config.policy}: such a policy is fitted in training: train a router with "
            f"this --policy, and leave the flag out here"
        )
    router = rj.Router.load(config.router)
    if config.encoder:
        router.use_encoder(options.load_router_encoders(router, config.encoder, "data:1"))
    if config.workdir is not None:
        rj.write_config(config.workdir, config)
    queries = lines() if config.query is None else iter([config.query])
    for chunk in chunks(queries, 1 if sys.stdin.isatty() else _CHUNK):
        for query, decision in zip(chunk, router.route(chunk, policy), strict=True):
            print(json.dumps({"query": query} | decision.to_json(), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    rj.run_script(main)
