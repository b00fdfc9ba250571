"""The values of a JSON list, one by one, so that a list of any length takes the memory of one."""

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
# Characters of the longest word ("-Infinity") or escape of which a part may end a piece, and more.
_WORD = 16


def values(pieces: Iterator[str], decoder: json.JSONDecoder, most: int) -> Iterator[Any]:
    """Yields the values of a list.

    Args:
      pieces: The text, piece by piece; it begins with "[", perhaps after white space.
      decoder: Reads a value.
      most: Characters that a value may have.

    Raises:
      json.JSONDecodeError: As json.loads raises it; the values before the fault have been yielded.
      ValueError: A value is too long, or the decoder's hooks refuse it.
    """
    window = _Window(pieces)
    window.skip_space()
    window.at += 1
    if window.skip_space() != "]":
        while True:
            yield window.value(decoder, most)
            after = window.skip_space()
            if after == "]":
                break
            if after != ",":
                raise window.error("Expecting ',' delimiter")
            window.at += 1
            window.skip_space()
    window.at += 1
    if window.skip_space():
        raise window.error("Extra data")


class _Window:
    """What of a text is not read yet, as far as it has been needed.

    Attributes:
      at: Where reading goes on.
    """

    def __init__(self, pieces: Iterator[str]):
        self._pieces = pieces
        self._text, self.at, self._whole = "", 0, False
        self._gone, self._gone_lines, self._line_start = 0, 0, 0

    def value(self, decoder: json.JSONDecoder, most: int) -> Any:
        """The value that begins here; a longer part of it is tried until it is whole."""
        while True:
            # Of a value that ends with the text, more may come: of 12 a 3.
            near = len(self._text) if self._whole else len(self._text) - _WORD
            try:
                value, end = decoder.raw_decode(self._text, self.at)
                if self._whole or end < near:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= near
                if self._whole or not cut:
                    self.at = error.pos
                    raise self.error(error.msg) from None
            left = len(self._text) - self.at
            if left >= most:
                raise self.error(f"a value of {most >> 20} Mi characters or more")
            self._fill(min(2 * left + 1, most))

    def skip_space(self) -> str:
        """The next character that is no white space, where reading then goes on; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self._text):
                return self._text[self.at]
            if self._whole:
                return ""
            self._fill(1)

    def error(self, message: str) -> json.JSONDecodeError:
        """Of what is here, with its place in the whole text."""
        text, at = self._text, self.at
        result = json.JSONDecodeError(message, text, at)
        before = text.rfind("\n", 0, at)
        line = self._gone_lines + text.count("\n", 0, at) + 1
        column = at - before if before >= 0 else self._gone + at - self._line_start + 1
        place = self._gone + at
        result.lineno, result.colno, result.pos = line, column, place
        result.args = (f"{message}: line {line} column {column} (char {place})",)
        return result

    def _fill(self, size: int) -> None:
        """Reads on until this many characters are left to read, or the text ends."""
        left = len(self._text) - self.at
        gone = self._text[: self.at]
        self._gone_lines += gone.count("\n")
        if "\n" in gone:
            self._line_start = self._gone + gone.rfind("\n") + 1
        self._gone += len(gone)
        parts = [self._text[self.at :]]
        while left < size and not self._whole:
            piece = next(self._pieces, None)
            self._whole = piece is None
            parts.append(piece or "")
            left += len(parts[-1])
        self._text, self.at = "".join(parts), 0
