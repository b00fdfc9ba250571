"""What is read of the requests that are passed on: all else is the target's to judge."""

import json
from typing import Annotated, Any, ClassVar

import pydantic

from routerjax.serving.choice import Needs
from routerjax.serving.route import MOST_MESSAGES
from routerjax.targets.endpoints import Target

_CHARS_A_TOKEN = 4  # Of tool definitions, which are not tokenised.


class ChatRequest(pydantic.BaseModel):
    """Of POST /v1/chat/completions."""

    path: ClassVar[str] = "/chat/completions"

    model: str
    messages: list[dict[str, Any]] = pydantic.Field(min_length=1, max_length=MOST_MESSAGES)
    tools: Any = None
    functions: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None

    @property
    def needs(self) -> Needs:
        """What it asks of a target."""
        return _needs(self.tools or self.functions, self.max_completion_tokens, self.max_tokens)

    @property
    def state(self) -> str | None:
        """None: all turns are in the request."""
        return None

    def fields(self, target: Target) -> dict[str, Any]:
        """What it says to a target in place of what the caller said."""
        return target.fields


class ResponsesRequest(pydantic.BaseModel):
    """Of POST /v1/responses."""

    path: ClassVar[str] = "/responses"

    model: str
    input: str | Annotated[list[Any], pydantic.Field(max_length=MOST_MESSAGES)] = ""
    instructions: Any = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    reasoning: Any = None
    tools: Any = None
    max_output_tokens: Any = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Its turns as those of a chat; items that no turn comes of are left out."""
        items = [{"content": self.input}] if isinstance(self.input, str) else self.input
        turns = [turn for item in items if (turn := _turn(item)) is not None]
        instructions = self.instructions
        if isinstance(instructions, str) and instructions:
            turns.insert(0, {"role": "system", "content": instructions})
        return turns

    @property
    def needs(self) -> Needs:
        """What it asks of a target."""
        return _needs(self.tools, self.max_output_tokens, responses=True)

    @property
    def state(self) -> str | None:
        """The id of what only the target that made it knows: a response, or a conversation."""
        named = self.previous_response_id or self.conversation
        return str(named.get("id")) if isinstance(named, dict) else named

    def fields(self, target: Target) -> dict[str, Any]:
        """What it says to a target in place of what the caller said.

        The target's parameters are those of chat completions, of which two have other names here.
        """
        fields = dict(target.fields)
        if "reasoning_effort" in fields:
            own = self.reasoning if isinstance(self.reasoning, dict) else {}
            fields["reasoning"] = own | {"effort": fields.pop("reasoning_effort")}
        for name in ("max_tokens", "max_completion_tokens"):
            if name in fields:
                fields["max_output_tokens"] = fields.pop(name)
        return fields


def _needs(tools: Any, *most_tokens: Any, responses: bool = False) -> Needs:
    answer = next((n for n in most_tokens if isinstance(n, int) and n > 0), 1)
    # A context window must be larger than its prompt; it may be filled by the answer.
    tokens = answer - 1 + (len(json.dumps(tools)) // _CHARS_A_TOKEN if tools else 0)
    return Needs(tokens, bool(tools), responses)


def _turn(item: Any) -> dict[str, Any] | None:
    """An item of `input` as a message."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role", "user"), "content": item.get("content")}
    if kind == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [{"function": item}]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output")}
    return None
