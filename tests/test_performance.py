"""What the benchmark promises and a test can hold: quick imports."""

import pathlib
import statistics
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_routerjax_loads_nothing_heavy():
    code = "import sys, routerjax; print(*sys.modules)"
    loaded = set(python(code).split())
    assert "routerjax" in loaded
    assert not loaded & {"jax", "numpy", "transformers", "flax", "orbax", "tensorstore", "torch"}


@pytest.mark.slow
def test_importing_all_that_routes_is_not_much_slower_than_what_lies_below():
    ours = "import sys, routerjax as rj; rj.Encoder; rj.Router; rj.extract; print(*sys.modules)"
    below = "import jax, transformers as t; t.AutoTokenizer; t.PreTrainedTokenizerFast"
    assert not set(python(ours).split()) & {"torch", "sklearn", "matplotlib", "orbax.checkpoint"}
    python(below)
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        python(ours)
        middle = time.perf_counter()
        python(below)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    assert statistics.median(ratios) < 1.5, ratios
