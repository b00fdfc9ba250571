"""HTTP servers of the tests, on ports of this machine."""

import asyncio
import threading
import time

import uvicorn


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
