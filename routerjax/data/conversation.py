"""A conversation as a query: messages as OpenAI's chat API has them."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from routerjax.runtime.files import digest

Messages: TypeAlias = Sequence[Mapping[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
# Not read: no later turn is shown them.
_HIDDEN_PARTS = ("reasoning", "thinking", "redacted_thinking")
_MODALITY_OF = {
    "image": "image", "image_url": "image", "input_image": "image",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
    "video": "video", "video_url": "video", "input_video": "video",
    "file": "file", "input_file": "file", "document": "file",
}  # fmt: skip


class Conversation(str):
    """A query of several turns, or of content other than text.

    It is a text too, for all that knows texts alone, and for encoders without a chat template:
    each turn as "role: text", an empty line between two turns. Encoders with a chat template read
    its turns. A conversation of one user turn of text alone is that text: see `as_query`.

    Attributes:
      messages: As given, JSON values.
      turns: (role, text) of each message; the texts of its parts one after the other.
      modalities: What it holds besides text, such as ("image",), in order of appearance.
    """

    messages: tuple[Mapping[str, Any], ...]
    turns: tuple[tuple[str, str], ...]
    modalities: tuple[str, ...]

    def __new__(cls, messages: Sequence[Mapping[str, Any]]) -> "Conversation":
        """Of messages; empty where none of them has any text.

        Raises:
          ValueError: One has no known role or content.
        """
        modalities: dict[str, None] = {}
        turns = tuple(_turn(i, message, modalities) for i, message in enumerate(messages))
        has_text = any(text.strip() for _, text in turns)
        texts = [f"{role}: {text}" for role, text in turns] if has_text else []
        made = super().__new__(cls, "\n\n".join(texts))
        made.messages, made.turns = tuple(messages), turns
        made.modalities = tuple(modalities)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.messages,)


def as_query(messages: Any, text_needed: bool = True) -> str:
    """Messages as a query: their text where they are one user turn of text alone.

    Args:
      messages: A list of them, or its JSON, as a cell of a CSV file holds it.
      text_needed: Whether messages without any text are refused; else they are an empty query.

    Raises:
      ValueError: They are no list of messages, have no text, or as of `Conversation`.
    """
    if isinstance(messages, str):
        with contextlib.suppress(ValueError, RecursionError):
            messages = json.loads(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(
            f"messages: expected a list of messages, or its JSON, got {messages!r:.200}"
        )
    made = Conversation(messages)
    if not made:
        if text_needed:
            raise ValueError("messages: expected a text in one of them at least, by which to route")
        return made
    alone = len(made.turns) == 1 and made.turns[0][0] == "user" and not made.modalities
    return made.turns[0][1] if alone else made


def is_messages(value: Any) -> bool:
    """Whether this is a list of messages, not of queries."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(message, Mapping) for message in value)
    )


def modalities_of(query: str) -> tuple[str, ...]:
    """What a query holds besides text."""
    return query.modalities if isinstance(query, Conversation) else ()


def with_last_text(query: str, edit: Callable[[str], str | None]) -> str | None:
    """The query with its text edited; of a conversation the last text of the last user turn.

    Args:
      query: A text or a `Conversation`.
      edit: From a text to another one, or to None where it does not apply.

    Returns:
      A query of the same kind; None where `edit` returns that or there is no such text.
    """
    if not isinstance(query, Conversation):
        return edit(query)
    at = max((i for i, (role, _) in enumerate(query.turns) if role == "user"), default=None)
    if at is None:
        return None
    content = query.messages[at].get("content")
    parts: list[Any] = [content] if isinstance(content, str) else list(content or ())
    for i, part in reversed(list(enumerate(parts))):
        name = None
        if not isinstance(part, str):
            name = next((key for key in ("text", part.get("type")) if key in part), None)
            if part.get("type") not in _TEXT_PARTS or name is None:
                continue
        text = edit(part if name is None else part[name])
        if text is None:
            return None
        parts[i] = text if name is None else {**part, name: text}
        edited = {**query.messages[at], "content": text if isinstance(content, str) else parts}
        return Conversation([*query.messages[:at], edited, *query.messages[at + 1 :]])
    return None


def text_id(query: str) -> str:
    """The id of a query that was given none: a digest of its text.

    Raises:
      UnicodeEncodeError: The text holds half a surrogate pair.
    """
    return digest(query, size=8)


def _turn(i: int, message: Any, modalities: dict[str, None]) -> tuple[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise ValueError(
            f"messages[{i}]: expected an object with a role of {', '.join(ROLES)}, got "
            f"{message!r:.200}"
        )
    content = message.get("content")
    if isinstance(content, str):
        texts = [content]
    elif content is None:
        texts = []
    elif isinstance(content, Sequence):
        texts = [
            text for part in content if (text := _part(i, part, modalities)) is not None
        ]  # fmt: skip
    else:
        raise ValueError(f"messages[{i}]: content: expected a text or a list, got {content!r:.200}")
    calls = [*(message.get("tool_calls") or ()), message.get("function_call")]
    texts += [_call(call) for call in calls if call is not None]
    if content is None and not texts:
        raise ValueError(f"messages[{i}]: expected content, got {message!r:.200}")
    return str(message["role"]), "\n".join(texts)


def _part(i: int, part: Any, modalities: dict[str, None]) -> str | None:
    """The text of a content part; None where it has none."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS:
        text = part.get("text", part.get(kind))
        if isinstance(text, str):
            return text
    elif kind in _MODALITY_OF:
        modalities[_MODALITY_OF[kind]] = None
        return None
    elif kind in _HIDDEN_PARTS:
        return None
    elif kind == "tool_use":  # As Anthropic's API has a call, and its result.
        return _call({"name": part.get("name"), "arguments": json.dumps(part.get("input"))})
    elif kind == "tool_result":
        content = part.get("content") or ""
        parts = content if isinstance(content, list | tuple) else [content]
        if any(isinstance(each, Mapping) and each.get("type") == kind for each in parts):
            raise ValueError(f"messages[{i}]: content: a tool_result lies within another")
        texts = [_part(i, each, modalities) for each in parts]
        return "\n".join(text for text in texts if text is not None)
    raise ValueError(
        f"messages[{i}]: content: expected parts of the types {', '.join(_TEXT_PARTS[:2])}, "
        f"{', '.join(_MODALITY_OF)}, got {part!r:.200}"
    )


def _call(call: Any) -> str:
    """A tool call as a text: name and arguments."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not isinstance(function, Mapping):
        function = {"name": function, "arguments": call.get("arguments")}
    return f"{function.get('name', 'tool')}({function.get('arguments', '')})"
