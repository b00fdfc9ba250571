"""Endpoints: where each target answers and what that costs, as targets.json says."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic


class Target(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A target's endpoint. Several may have one model, with other parameters.

    Attributes:
      name: As the router knows it.
      base_url: Of its OpenAI-compatible API, such as https://host/v1.
      model: What it calls the model; None for `name`.
      api_key_env: Environment variable with the key that it is shown as bearer; None for none.
      context_window: Tokens of prompt and answer; None for what pool.json says.
      modalities: What it takes ("text", "image", ...); None for what pool.json says.
      tools: Whether it calls tools.
      responses: Whether it has the Responses API; of serving alone.
      timeout_s: Seconds that it may be silent; None for those of the server or of collecting.
      parameters: Fields of every request to it, such as {"reasoning_effort": "high"}; they go
        before those of the caller.
      input_price: USD per 1M input tokens; None where it is unknown. Prices and the fields below
        are of collecting alone: a router has the prices of its own data.
      output_price: USD per 1M output tokens.
      cached_input_price: USD per 1M input tokens that the provider had cached; None for
        `input_price`.
      max_concurrency: Most requests in hand at a time; None for that of collecting.
      requests_per_minute: Most requests begun in a minute, evenly spread; None for no limit.
    """

    name: Annotated[str, pydantic.Field(min_length=1)]
    base_url: pydantic.HttpUrl
    model: str | None = None
    api_key_env: str | None = None
    context_window: pydantic.PositiveInt | None = None
    modalities: tuple[Literal["text", "image", "audio", "video", "file"], ...] | None = None
    tools: bool = True
    responses: bool = True
    timeout_s: pydantic.PositiveFloat | None = None
    parameters: dict[str, Any] = {}
    input_price: pydantic.NonNegativeFloat | None = None
    output_price: pydantic.NonNegativeFloat | None = None
    cached_input_price: pydantic.NonNegativeFloat | None = None
    max_concurrency: pydantic.PositiveInt | None = None
    requests_per_minute: pydantic.PositiveFloat | None = None

    @property
    def url(self) -> str:
        """Where chat completions are asked for."""
        return self.at("/chat/completions")

    def at(self, path: str) -> str:
        """The address of a path of its API."""
        return f"{str(self.base_url).rstrip('/')}{path}"

    @property
    def fields(self) -> dict[str, Any]:
        """What requests to it say, whatever the caller said."""
        return self.parameters | {"model": self.model or self.name}

    @property
    def headers(self) -> dict[str, str]:
        """What it is shown."""
        return (
            {"authorization": f"Bearer {os.environ[self.api_key_env]}"} if self.api_key_env else {}
        )


class Targets:
    """The targets by name.

    Args:
      targets: In any order.

    Raises:
      ValueError: A name is given twice, or the variable with a key is not set.
    """

    def __init__(self, targets: list[Target]):
        self._targets = {target.name: target for target in targets}
        names = [target.name for target in targets]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"targets: {twice[0]!r} is given twice")
        for target in targets:
            if target.api_key_env and not os.environ.get(target.api_key_env):
                raise ValueError(
                    f"targets: {target.name!r} takes its key from the environment variable "
                    f"{target.api_key_env}, which is not set"
                )

    def __iter__(self) -> Iterator[Target]:
        """In the order given."""
        return iter(self._targets.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(self._targets)

    def get(self, name: str) -> Target | None:
        """The target of a name."""
        return self._targets.get(name)


def read_targets(path: str | os.PathLike[str]) -> Targets:
    """Reads targets.json: {"targets": [{"name": ..., "base_url": ...}, ...]}.

    Raises:
      ValueError: It is not as described; names the target and the field.
      OSError: It cannot be read.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    rows = value.get("targets") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{path}: expected {{"targets": [{{"name", "base_url"}}, ...]}}')
    try:
        targets = pydantic.TypeAdapter(list[Target]).validate_python(rows)
        return Targets(targets)
    except pydantic.ValidationError as error:
        (row, *field), text = error.errors()[0]["loc"], error.errors()[0]["msg"]
        name = ".".join(map(str, field)) or "target"
        raise ValueError(f"{path}: targets[{row}]: {name}: {text}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
