"""ServingConfig: every number by which a server is run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """How a server listens, batches and limits.

    Attributes:
      host: Address to listen on.
      port: Port to listen on; 0 for any that is free.
      token: What callers must show, as bearer or as key of the body's HMAC; None lets all in.
      max_wait_ms: Milliseconds that a query waits for others to be read with it.
      max_batch: Queries that are read together, at most.
      max_queue: Queries that wait, at most; further ones are answered 429.
      max_concurrency: Requests in hand, at most; further ones are answered 429.
      max_body_bytes: Of a request.
      max_prompt_chars: Characters of a query, all its turns together.
      sticky_s: Seconds after its last request for which a conversation keeps its target; 0 for not
        at all.
      connect_timeout_s: Seconds for a connection to a target.
      timeout_s: Seconds a target may be silent, where targets.json has none for it.
      drain_s: Seconds for requests in hand after SIGTERM.
      outcomes: File to which /v1/outcomes appends; None for no such path.
      log_queries: Whether the texts of queries are written there too.

    Raises:
      ValueError: A number is out of range, or queries should be written and no file is named.
    """

    host: str = "127.0.0.1"
    port: int = 8400
    token: str | None = None
    max_wait_ms: float = 2.0
    max_batch: int = 64
    max_queue: int = 1024
    max_concurrency: int = 1024
    max_body_bytes: int = 32 * 2**20
    max_prompt_chars: int = 1_000_000
    sticky_s: float = 300.0
    connect_timeout_s: float = 5.0
    timeout_s: float = 600.0
    drain_s: float = 30.0
    outcomes: str | None = None
    log_queries: bool = False

    def __post_init__(self) -> None:
        at_least_one = ("max_batch", "max_queue", "max_concurrency", "max_body_bytes",
                        "max_prompt_chars")  # fmt: skip
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low = 1 if field.name in at_least_one else 0
            if isinstance(value, int | float) and not value >= low:
                raise ValueError(
                    f"{field.name}: expected a number of at least {low}, got {value!r}"
                )
        if self.token is not None and not self.token:
            raise ValueError("token: expected a text that is not empty")
        if self.log_queries and self.outcomes is None:
            raise ValueError("log_queries: queries are written with their outcomes: name a file")
