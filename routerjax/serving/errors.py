"""Problem: what a request is answered where it cannot be served, as OpenAI's API writes errors."""

from collections.abc import Mapping
from typing import Any

import pydantic
from starlette.responses import JSONResponse, Response

_MOST = 1000  # Characters of a message.


class Problem(Exception):
    """Ends a request with an error.

    Attributes:
      status: Of HTTP.
      message: What was expected, what came, what to do.
      code: A word for programs.
      param: The field at fault; None where it is none.
      headers: Further ones of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        if len(message) > _MOST:  # It may repeat what came.
            message = f"{message[:_MOST]} [... {len(message) - _MOST:,} more characters]"
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers

    def to_json(self) -> dict[str, Any]:
        """As OpenAI's API writes it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.to_json(), self.status, self.headers)

    @classmethod
    def invalid(cls, error: ValueError) -> "Problem":
        """Of a request that pydantic or the library refuses."""
        if not isinstance(error, pydantic.ValidationError):
            return cls(400, str(error), "invalid_value")
        first, *others = error.errors(include_url=False, include_input=False)
        field = ".".join(str(part) for part in first["loc"]) or None
        more = f" (and {len(others)} more)" if others else ""
        message = f"{field}: {first['msg']}{more}" if field else f"{first['msg']}{more}"
        return cls(400, message, "invalid_value", field)

    @classmethod
    def overloaded(cls, message: str, seconds: float) -> "Problem":
        """Of a server that has no room for the request for so long."""
        wait = str(max(1, round(seconds)))
        return cls(429, f"{message}: try again in {wait} s", "overloaded", None,
                   {"Retry-After": wait})  # fmt: skip
