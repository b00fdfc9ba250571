"""A JSON object whose fields are read and replaced while all its other bytes stay as they came."""

import json
import re
from typing import Any

from routerjax.serving.errors import Problem

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonBody:
    """The object that a request's body holds.

    Args:
      body: As it came.

    Attributes:
      fields: Its values; of a name that comes twice the last.

    Raises:
      Problem: It is no JSON object in UTF-8.
    """

    def __init__(self, body: bytes):
        self.fields: dict[str, Any] = {}
        self._spans: list[tuple[str, int, int]] = []
        try:
            self._text = body.decode()
            self._end = self._scan()
        except (ValueError, IndexError, RecursionError) as error:
            raise Problem(
                400, f"the body: expected a JSON object in UTF-8: {error}", "invalid_json"
            ) from error

    def _scan(self) -> int:
        """Reads every field and where its value lies; the position of the closing brace."""
        text, at = self._text, self._after_space(0)
        if text[at] != "{":
            raise ValueError(f"it begins with {text[at]!r}")
        at = self._after_space(at + 1)
        while text[at] != "}":
            if self._spans:
                at = self._after_space(self._expect(",", at))
            name, at = _DECODER.raw_decode(text, at)
            if not isinstance(name, str):
                raise ValueError(f"a field is called {name!r}")
            first = self._after_space(self._expect(":", self._after_space(at)))
            self.fields[name], at = _DECODER.raw_decode(text, first)
            self._spans.append((name, first, at))
            at = self._after_space(at)
        if self._after_space(at + 1) != len(text):
            raise ValueError("text behind its end")
        return at

    def _after_space(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        assert match is not None
        return match.end()

    def _expect(self, character: str, at: int) -> int:
        if self._text[at] != character:
            raise ValueError(f"expected {character!r} at character {at}, got {self._text[at]!r}")
        return at + 1

    def replaced(self, fields: dict[str, Any]) -> bytes:
        """The body with these values: in place of those that are there, else at its end."""
        text, pieces, at = self._text, [], 0
        for name, first, past in self._spans:
            if name in fields:
                pieces += [text[at:first], json.dumps(fields[name])]
                at = past
        pieces.append(text[at : self._end])
        missing = {name: value for name, value in fields.items() if name not in self.fields}
        if missing:
            pieces.append((", " if self.fields else "") + json.dumps(missing)[1:-1])
        return "".join([*pieces, text[self._end :]]).encode()
