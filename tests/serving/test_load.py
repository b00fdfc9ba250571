"""The server as a process of its own: more than it can take, and SIGTERM with work in hand."""

import asyncio
import collections
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.http_servers import free_port, wait_for

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def server(tiny_router, tmp_path):
    """(URL, process), ready, with a queue of 32 queries."""
    tiny_router.save(tmp_path / "router")
    port = free_port()
    command = [sys.executable, "-m", "experiments.serve", f"--router={tmp_path / 'router'}",
               f"--port={port}", "--max_batch=8", "--max_queue=32"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    url = f"http://127.0.0.1:{port}"
    wait_for(f"{url}/readyz", process, 120)
    yield url, process
    process.kill()
    process.wait()


def resident_kib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


async def load(url, clients, seconds, n_queries=1):
    """Statuses of closed-loop clients, and their latencies in order."""
    codes, latencies, end = collections.Counter(), [], time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as http:

        async def one(i):
            n = 0
            while time.perf_counter() < end:
                start, n = time.perf_counter(), n + 1
                query = ["abc +" * (1 + (i + n) % 12)] * n_queries
                answer = await http.post("/v1/route", json={"query": query})
                codes[answer.status_code] += 1
                latencies.append(time.perf_counter() - start)
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1

        await asyncio.gather(*map(one, range(clients)))
    return codes, sorted(latencies)


def test_it_takes_what_it_can_refuses_the_rest_and_recovers(server):
    url, process = server
    codes, before = asyncio.run(load(url, 16, 4))
    assert set(codes) == {200}
    size = resident_kib(process)
    codes, _ = asyncio.run(load(url, 96, 4, n_queries=4))
    assert set(codes) == {200, 429}
    codes, after = asyncio.run(load(url, 16, 4))
    assert set(codes) == {200}
    assert after[len(after) // 2] < 3 * before[len(before) // 2]
    assert after[int(0.99 * len(after))] < 10 * after[len(after) // 2] + 0.05
    assert resident_kib(process) < 1.1 * size + 30_000
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    assert 'routerjax_compiled_programs{when="after_ready"} 0.0' in lines


def test_sigterm_finishes_what_is_in_hand(server):
    url, process = server

    async def run():
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            asked = [
                asyncio.create_task(http.post("/v1/route", json={"query": ["abc +" * 12] * 32}))
            ]
            while "routerjax_batch_queries_count 0.0" in (await http.get("/metrics")).text:
                await asyncio.sleep(0)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

    (answer,) = asyncio.run(run())
    assert len(answer.json()["decisions"]) == 32
    assert process.wait(20) == 0
