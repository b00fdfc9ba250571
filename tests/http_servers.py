"""HTTP servers of the tests, on ports of this machine."""

import asyncio
import socket
import threading
import time

import httpx
import uvicorn


def free_port():
    """A port that nobody has, for a process that is started next."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(url, process, seconds, told=lambda: ""):
    """Waits until a process answers a path with 200; `told()` is what it wrote, for the error."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass  # It does not listen yet.
        assert process.poll() is None and time.monotonic() < deadline, told()
        time.sleep(0.1)


class Served:
    """Applications, each on a port of its own, in one thread."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._servers = []

    def start(self, app):
        config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        future = asyncio.run_coroutine_threadsafe(server.serve(), self._loop)
        self._servers.append((server, future))
        while not server.started:
            assert not future.done(), future.exception()
            time.sleep(0.005)
        return server.servers[0].sockets[0].getsockname()[1]

    def stop(self):
        for server, _ in self._servers:
            server.should_exit = True
        for _, future in self._servers:
            future.result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
