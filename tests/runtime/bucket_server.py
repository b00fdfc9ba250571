"""Servers of S3's and Google Cloud Storage's protocols, with a bucket in memory. Not a test.

Conditional requests included; they fail as object stores do, see `Bucket.trouble`.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from email.utils import formatdate
from xml.sax.saxutils import escape

import pytest
import tensorstore as ts

from routerjax.runtime import files


class Bucket(http.server.ThreadingHTTPServer):
    """The server, and what lies in its bucket.

    Attributes:
      objects: (content, generation) by name.
      listed: The names that a listing tells; None for those that are there.
      trouble: What goes wrong with a request (method, name), of which a listing's method is LIST:
        "" for nothing; "busy" for 503 and "broken" for 500, neither of which does anything;
        "dropped" where the connection ends before anything is done, "lost" where it ends once all
        is done; "hangs" where no answer comes.
      asked: (method, name) of all requests so far.
    """

    daemon_threads = True

    def __init__(self, handler: type["_Handler"]):
        super().__init__(("127.0.0.1", 0), handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.listed: set[str] | None = None
        self.trouble: Callable[[str, str], str] = lambda method, name: ""
        self.asked: list[tuple[str, str]] = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self._generations = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Content and generation; None where there is no such object."""
        with self.lock:
            return self.objects.get(name)

    def change(self, name: str, data: bytes | None, expected: int | None) -> int | None:
        """Writes, or deletes for None, where the generation is the one expected, if one is.

        Returns the new generation; None where it was another.
        """
        with self.lock:
            if expected is not None and expected != self.objects.get(name, (b"", 0))[1]:
                return None
            self._generations += 1
            if data is None:
                self.objects.pop(name, None)
            else:
                self.objects[name] = data, self._generations
            return self._generations

    def names(self, prefix: str) -> list[str]:
        """What a listing tells."""
        with self.lock:
            names = self.objects if self.listed is None else self.listed
            return sorted(name for name in names if name.startswith(prefix))

    def handle_error(self, request, client_address) -> None:
        """Says nothing of connections that end."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket
    _loses = False

    def log_message(self, *_) -> None:
        """Says nothing."""

    @property
    def query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(self.path.partition("?")[2], keep_blank_values=True))

    def fails(self, method: str, name: str) -> bool:
        """Whether something goes wrong that is answered, or not, by this."""
        trouble = self.server.trouble(method, name)
        self.server.asked.append((method, name))
        self._loses = trouble == "lost"
        if trouble == "hangs":
            self.server.closing.wait(60)
        if trouble in ("dropped", "hangs"):
            self.close_connection = True
        elif trouble == "busy":
            self.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        elif trouble == "broken":
            self.answer(500, b"<Error><Code>InternalError</Code></Error>")
        return trouble not in ("", "lost")

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        if self._loses:
            self.close_connection = True
            return
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def part(self, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Code, bytes and headers of what was asked for of an object."""
        wanted = self.headers.get("Range")
        if not wanted:
            return 200, data, {}
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(data) - int(last)
        stop = int(last) + 1 if first and last else len(data)
        cut = data[start:stop]
        return 206, cut, {"Content_Range": f"bytes {start}-{start + len(cut) - 1}/{len(data)}"}


class _S3(_Handler):
    """Of objects /bucket/NAME; an ETag is a digest, so that an equal object has an equal one."""

    def do_GET(self) -> None:
        """GET, HEAD and lists."""
        if "list-type" in self.query:
            return self._list()
        if self.fails("GET", self._name()):
            return
        found = self.server.read(self._name())
        if found is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers.get("If-Match", self._tag(found[0])) != self._tag(found[0]):
            return self.answer(412)
        code, data, headers = self.part(found[0])
        headers |= {"ETag": self._tag(found[0]), "Last_Modified": formatdate(usegmt=True)}
        self.answer(code, data, **headers)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """A write, under its conditions."""
        data = self.content()
        if self.fails("PUT", self._name()):
            return
        found = self.server.read(self._name())
        wanted, expected = self.headers.get("If-Match"), None
        if self.headers.get("If-None-Match") == "*":
            expected = 0
        elif wanted is not None:
            # -1 is of no object.
            expected = found[1] if found and wanted == self._tag(found[0]) else -1
        if self.server.change(self._name(), data, expected) is None:
            return self.answer(412)
        self.answer(200, ETag=self._tag(data))

    def do_DELETE(self) -> None:
        """Of an object that need not be there."""
        if not self.fails("DELETE", self._name()):
            self.server.change(self._name(), None, None)
            self.answer(204)

    def _list(self) -> None:
        prefix, after = (self.query.get(name, "") for name in ("prefix", "start-after"))
        if self.fails("LIST", prefix):
            return
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>1</Size></Contents>"
            for name in self.server.names(prefix)
            if name > after
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        self.answer(200, text.encode(), Content_Type="application/xml")

    def _name(self) -> str:
        return urllib.parse.unquote(self.path.partition("?")[0]).removeprefix("/bucket/")

    @staticmethod
    def _tag(data: bytes) -> str:
        return f'"{hashlib.md5(data).hexdigest()}"'


class _Gcs(_Handler):
    """Of objects /storage/v1/b/bucket/o/NAME."""

    def do_GET(self) -> None:
        """GET and lists."""
        if not self._name():
            return self._list()
        if self.fails("GET", self._name()):
            return
        found = self.server.read(self._name())
        if found is None:
            return self.answer(404)
        if int(self.query.get("ifGenerationMatch", found[1])) != found[1]:
            return self.answer(412)
        code, data, headers = self.part(found[0])
        self.answer(code, data, x_goog_generation=str(found[1]), **headers)

    def do_POST(self) -> None:
        """A write, under its conditions."""
        data, name = self.content(), self.query["name"]
        if not self.fails("PUT", name):
            self._change(name, data)

    def do_DELETE(self) -> None:
        """A deletion, under its conditions."""
        if self.fails("DELETE", self._name()):
            return
        if self.server.read(self._name()) is None:
            return self.answer(404)
        self._change(self._name(), None)

    def _change(self, name: str, data: bytes | None) -> None:
        expected = self.query.get("ifGenerationMatch")
        new = self.server.change(name, data, None if expected is None else int(expected))
        if new is None:
            return self.answer(412)
        self.answer(200, json.dumps({"name": name, "generation": str(new)}).encode())

    def _list(self) -> None:
        query = self.query
        prefix, start, end = (query.get(k, "") for k in ("prefix", "startOffset", "endOffset"))
        if self.fails("LIST", prefix or start):
            return
        items = [
            {"name": name, "size": "1"}
            for name in self.server.names(prefix)
            if name >= start and (not end or name < end)
        ]
        self.answer(200, json.dumps({"items": items}).encode())

    def _name(self) -> str:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        return path.removeprefix("/storage/v1/b/bucket/o").removeprefix("/")


@contextlib.contextmanager
def serve(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Within it folders in `scheme://bucket` are of this server; requests are made again at once.

    Args:
      scheme: "s3" or "gs".
      monkeypatch: Of the test.
    """
    server = Bucket({"s3": _S3, "gs": _Gcs}[scheme])
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
        "TENSORSTORE_GCS_HTTP_URL": server.url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "z",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    again = {"max_retries": 16, "initial_delay": "5ms", "max_delay": "10ms"}
    context = {"s3_request_retries": again, "gcs_request_retries": again}
    monkeypatch.setattr(files, "CONTEXT", ts.Context(context, parent=files.CONTEXT))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
