"""A server of S3's protocol, conditional requests included, with a bucket in memory. Not a test."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from email.utils import formatdate

import tensorstore as ts

from routerjax.runtime.files import Folder


class _Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    lock: threading.Lock

    def log_message(self, *_) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """GET and HEAD."""
        with self.lock:
            data = self.objects.get(self._key())
        if data is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers.get("If-Match", _tag(data)) != _tag(data):
            return self._answer(412)
        self._answer(200, data, {"ETag": _tag(data), "Last-Modified": formatdate(usegmt=True)})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """A write, under its conditions."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            there = self.objects.get(self._key())
            tag = None if there is None else _tag(there)
            if there is not None and self.headers.get("If-None-Match") == "*":
                return self._answer(412)
            if self.headers.get("If-Match", tag) != tag:
                return self._answer(412)
            self.objects[self._key()] = data
        self._answer(200, headers={"ETag": _tag(data)})

    def do_DELETE(self) -> None:
        """Of an object that need not be there."""
        with self.lock:
            self.objects.pop(self._key(), None)
        self._answer(204)

    def _key(self) -> str:
        return self.path.partition("?")[0]

    def _answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextlib.contextmanager
def bucket(monkeypatch) -> Iterator[Folder]:
    """A folder in a bucket; its files can be read and written, not listed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    handler = type("Bucket", (_Bucket,), {"objects": {}, "lock": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    folder = Folder("memory://bucket")
    spec = {"driver": "s3", "bucket": "bucket", "path": "a/", "aws_region": "us-east-1",
            "endpoint": f"http://127.0.0.1:{server.server_port}"}  # fmt: skip
    folder.path, folder._kv = "s3://bucket/a/", ts.KvStore.open(spec).result()
    folder.list = lambda prefix="": sorted(  # type: ignore[method-assign]
        key.removeprefix("/bucket/a/") for key in handler.objects
    )
    try:
        yield folder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
