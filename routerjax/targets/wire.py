"""Requests to OpenAI-compatible endpoints and their answers: what is sent, costs, and means."""

import asyncio
import dataclasses
import datetime
import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from routerjax.data.conversation import Conversation, modalities_of
from routerjax.targets.endpoints import Target

# Larger bodies are no answer.
_MOST_BYTES = 32 << 20
# Tokens that a chat template may write around the messages, for the worst case of a cost.
_TEMPLATE_TOKENS = 256
_MILLION = 1e6


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      text: What the target said; empty where it said nothing.
      finish_reason: Why it ended, such as stop or length.
      input_tokens: Cached ones included; None where the target does not tell. So are the others.
      cached_input_tokens: Those that the provider had cached.
      output_tokens: Those of reasoning included.
      latency_s: Seconds from the request to the whole answer, of the attempt that was answered.
    """

    text: str
    finish_reason: str | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    latency_s: float

    def usd(self, target: Target) -> float | None:
        """What it cost; None where prices or tokens are not known."""
        counts = (self.input_tokens, self.output_tokens)
        if target.input_price == target.output_price == 0:
            return 0.0
        if None in (*counts, target.input_price, target.output_price):
            return None
        assert self.input_tokens is not None and target.input_price is not None
        assert self.output_tokens is not None and target.output_price is not None
        cached = min(self.cached_input_tokens or 0, self.input_tokens)
        price = target.cached_input_price
        price = target.input_price if price is None else price
        millionths = (self.input_tokens - cached) * target.input_price + cached * price
        return (millionths + self.output_tokens * target.output_price) / _MILLION


class Failure(Exception):
    """An attempt that gave no answer.

    Attributes:
      scope: "attempt" where another may succeed, "call" where this request is refused, "target"
        where any other would be too.
      billed: Whether it may have been billed.
      wait_s: Seconds that the target asks to wait; None where it does not say.
    """

    def __init__(
        self, text: str, scope: str = "attempt", billed: bool = False, wait_s: float | None = None
    ):
        super().__init__(text)
        self.scope, self.billed, self.wait_s = scope, billed, wait_s


def request_of(target: Target, query: str) -> dict[str, Any]:
    """The body of a request: the query's messages, and what targets.json says."""
    messages = [{"role": "user", "content": str(query)}]
    if isinstance(query, Conversation):
        messages = [dict(message) for message in query.messages]
    return target.fields | {"messages": messages}


def worst_usd(target: Target, body: Mapping[str, Any], query: str) -> float | None:
    """What a request costs at most; None where prices or the longest answer are not known.

    A token is at least one byte, so that a prompt has at most as many tokens as its JSON has bytes,
    and what the chat template adds. A picture has as many as fit the context window.
    """
    if target.input_price is None or target.output_price is None:
        return None
    most = target.parameters.get("max_completion_tokens", target.parameters.get("max_tokens"))
    if target.output_price == 0:
        most = 0
    prompt = float(len(json.dumps(body, ensure_ascii=False).encode(errors="replace")))
    prompt += _TEMPLATE_TOKENS
    if set(modalities_of(query)) - {"text"}:
        prompt = float(target.context_window or "nan") if target.input_price else 0.0
    elif target.context_window:
        prompt = min(prompt, target.context_window)
    if not isinstance(most, int) or prompt != prompt:
        return None
    return (prompt * target.input_price + most * target.output_price) / _MILLION


async def send(
    client: httpx.AsyncClient, target: Target, body: Mapping[str, Any], timeout_s: float
) -> Reply:
    """Asks once.

    Args:
      client: Whose own timeouts are at least as long.
      target: Who is asked.
      body: Of `request_of`.
      timeout_s: Seconds for the whole answer.

    Raises:
      Failure: There is no answer.
    """
    start = time.perf_counter()
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async with client.stream(
                "POST", target.url, json=body, headers=target.headers
            ) as response:
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > _MOST_BYTES:
                        raise Failure(f"more than {_MOST_BYTES >> 20} MiB", "call", billed=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Failure(f"cannot be reached: {error or type(error).__name__}") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Failure(f"no answer within {timeout_s:g} s", billed=True) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Failure(f"broke off: {error or type(error).__name__}", billed=True) from error
    if response.status_code != 200:
        raise _refusal(response, bytes(data))
    return _reply(bytes(data), time.perf_counter() - start)


def _refusal(response: httpx.Response, data: bytes) -> Failure:
    """What an answer of a status other than 200 means."""
    status = response.status_code
    value: Any = {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        pass
    error = value.get("error", value) if isinstance(value, dict) else value
    error = error if isinstance(error, dict) else {"message": error}
    said = str(error.get("message") or data.decode(errors="replace"))[:200].strip()
    text = f"status {status}" + (f": {said}" if said else "")
    no_money = status == 402 or error.get("code") == "insufficient_quota"
    if no_money or status in (401, 404, 405) or status < 400:
        return Failure(text, "target")
    if status in (408, 409, 425, 429) or status >= 500:
        # Behind a gateway that lost it, an answer may have been written.
        return Failure(text, billed=status in (408, 502, 504), wait_s=retry_after(response.headers))
    return Failure(text, "call")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, which may be a number or a date; None without either."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        # A date in the form without a zone is in UTC.
        at = at.replace(tzinfo=at.tzinfo or datetime.UTC)
        seconds = (at - datetime.datetime.now(datetime.UTC)).total_seconds()
    return max(seconds, 0.0) if seconds == seconds else None


def _reply(data: bytes, latency_s: float) -> Reply:
    """The answer in a body.

    Raises:
      Failure: There is none in it.
    """

    def bad(what: str) -> Failure:
        return Failure(
            f"not an answer: {what}: {data[:80].decode(errors='replace')!r}", billed=True
        )

    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad("not JSON") from error
    if not isinstance(value, dict):
        raise bad("expected an object")
    if value.get("error"):
        raise Failure(f"an error in place of an answer: {str(value['error'])[:200]}", billed=True)
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise bad("expected choices with a message")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None:
        content = message.get("refusal") or ""
    if not isinstance(content, str):
        raise bad("expected content that is a text")
    reason = first.get("finish_reason")
    if reason == "content_filter":
        raise Failure("withheld by the provider's content filter", "call", billed=True)
    usage = value.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Reply(
        # Half a surrogate pair is no text that could be sent on or written.
        text=content.encode(errors="replace").decode(),
        finish_reason=reason if isinstance(reason, str) else None,
        input_tokens=_count(usage.get("prompt_tokens")),
        cached_input_tokens=_count(cached),
        output_tokens=_count(usage.get("completion_tokens")),
        latency_s=round(latency_s, 4),
    )


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**24
    return value if whole else None
