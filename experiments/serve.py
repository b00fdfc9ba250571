"""Serves a router: decisions, and an OpenAI-compatible proxy in front of its targets.

    python -m experiments.serve --router=runs/quickstart/router
    python -m experiments.serve --router=runs/a/router --targets=targets.json --host=0.0.0.0 \
        --token_env=ROUTERJAX_TOKEN

    curl http://127.0.0.1:8400/v1/route -H 'Content-Type: application/json' \
        -d '{"query": "What is 17 * 23?", "tolerance": 0.1}'

docs/serving.md has the paths and targets.json. SIGTERM ends it after the requests in hand.
"""

import dataclasses
import os

import routerjax as rj
from experiments import options

_DEFAULT = rj.ServingConfig()


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    router: str
    encoder: str | None
    mesh: str
    targets: str | None = options.flag(
        None, "JSON file of where targets answer; without it there are decisions alone."
    )
    host: str = options.flag(_DEFAULT.host, "Address to listen on.")
    port: int = options.flag(_DEFAULT.port, "Port to listen on.", 0, 65535)
    token_env: str | None = options.flag(
        None, "Environment variable with the token that callers must show."
    )
    allow_strangers: bool = options.flag(False, "Whether other machines may call without a token.")
    max_wait_ms: float = options.flag(
        _DEFAULT.max_wait_ms, "Milliseconds that a query waits for others to be read with it.", 0
    )
    max_batch: int = options.flag(_DEFAULT.max_batch, "Most queries read together.", 1)
    max_queue: int = options.flag(_DEFAULT.max_queue, "Most queries that wait.", 1)
    max_concurrency: int = options.flag(_DEFAULT.max_concurrency, "Most requests in hand.", 1)
    max_body_mib: int = options.flag(_DEFAULT.max_body_bytes >> 20, "Largest body, MiB.", 1)
    max_prompt_chars: int = options.flag(_DEFAULT.max_prompt_chars, "Longest query.", 1)
    sticky_s: float = options.flag(
        _DEFAULT.sticky_s, "Seconds for which a conversation keeps its target.", 0
    )
    timeout_s: float = options.flag(_DEFAULT.timeout_s, "Seconds a target may be silent.", 0)
    drain_s: float = options.flag(
        _DEFAULT.drain_s, "Seconds for requests in hand after SIGTERM.", 0
    )
    outcomes: str | None = options.flag(
        None, "JSONL file to which /v1/outcomes appends; without it there is no such path."
    )
    log_queries: bool = options.flag(
        False, "Whether --outcomes gets the texts of queries too; else digests alone."
    )


options.define(Config, mesh="data:1")


def main() -> None:
    """Serves."""
    config = options.read(Config)
    token = None
    if config.token_env is not None:
        token = os.environ.get(config.token_env)
        if not token:
            raise ValueError(f"--token_env: the variable {config.token_env} is not set")
    named = {field.name for field in dataclasses.fields(rj.ServingConfig)}
    given = {name: value for name, value in vars(config).items() if name in named}
    serving = rj.ServingConfig(**given, token=token, max_body_bytes=config.max_body_mib << 20)
    targets = None if config.targets is None else rj.read_targets(config.targets)
    router = rj.Router.load(config.router)
    if config.encoder:
        router.use_encoder(options.load_router_encoders(router, config.encoder, config.mesh))
    rj.serve(router, serving, targets, config.allow_strangers)


if __name__ == "__main__":
    rj.run_script(main, stops_within=None)
