"""The suites by name."""

from collections.abc import Callable
from typing import Any

from benchmarks.suites.capture import capture, encoders
from benchmarks.suites.compile import compile
from benchmarks.suites.forward import forward
from benchmarks.suites.host import host
from benchmarks.suites.pod import pod
from benchmarks.suites.probes import probes
from benchmarks.suites.router import router
from benchmarks.suites.session import Session
from benchmarks.suites.sweep import sweep
from benchmarks.suites.tpu import tpu
from benchmarks.suites.trunk import trunk, trunks

SUITES: dict[str, Callable[[Session], dict[str, Any]]] = {
    "capture": capture,
    "encoders": encoders,
    "forward": forward,
    "probes": probes,
    "sweep": sweep,
    "trunk": trunk,
    "trunks": trunks,
    "router": router,
    "compile": compile,
    "host": host,
    "pod": pod,
    "tpu": tpu,
}
