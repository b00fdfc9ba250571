"""The suites by name."""

from collections.abc import Callable
from typing import Any

from experiments.bench.capture import capture, encoders
from experiments.bench.compile import compile
from experiments.bench.probes import probes
from experiments.bench.router import router
from experiments.bench.session import Session
from experiments.bench.sweep import sweep
from experiments.bench.trunk import trunk, trunks

SUITES: dict[str, Callable[[Session], dict[str, Any]]] = {
    "capture": capture,
    "encoders": encoders,
    "probes": probes,
    "sweep": sweep,
    "trunk": trunk,
    "trunks": trunks,
    "router": router,
    "compile": compile,
}
