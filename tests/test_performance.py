"""What the benchmark promises and a test can hold: quick imports, memory that does not grow."""

import pathlib
import statistics
import subprocess
import sys
import time

import pytest

from tests.export import by_hand

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


@pytest.mark.slow
def test_a_first_answer_costs_little_beyond_what_lies_below(tiny_encoder_folder, tmp_path):
    """CPU seconds of a fresh process that loads a router and an encoder, and reads a query."""
    by_hand.router().save(tmp_path / "router")
    ours = (
        "import sys, time, routerjax as rj; rj.Router.load(sys.argv[1]); "
        "rj.Encoder.from_pretrained(sys.argv[2]).capture(['hello']); "
    )
    below = (
        "import sys, time; sys.modules['torch'] = None; import jax, tensorstore; "
        "from flax import nnx; from transformers import AutoConfig, AutoTokenizer; "
    )
    end = "print(time.process_time(), *sys.modules)"
    took = []
    for code in (ours, ours, below):  # The first fills the compilation cache.
        seconds, *loaded = python(code + end, str(tmp_path / "router"), tiny_encoder_folder).split()
        took.append(float(seconds))
        heavy = {"torch", "orbax.checkpoint", "sklearn", "matplotlib"} & set(loaded)
        assert code is below or not heavy

    assert took[1] < 2.2 * took[2], took


@pytest.mark.slow
def test_memory_of_an_extraction_does_not_grow_with_its_queries(tmp_path):
    """Ten times the queries take at most a tenth more of peak memory."""
    code = """
import pathlib, resource, sys
import routerjax as rj
from benchmarks.suites import checkpoints
folder, n = sys.argv[1], int(sys.argv[2])
path = checkpoints.write(pathlib.Path(folder) / "tiny", checkpoints.tiny(4), "float32")
encoder = rj.Encoder.from_pretrained(path)
rj.extract(encoder, checkpoints.queries(n, 16, 0), f"{folder}/store{n}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    few, many = (int(python(code, str(tmp_path), str(n))) for n in (3000, 30000))
    assert many <= 1.1 * few, f"{few} KiB for 3,000 queries, {many} KiB for 30,000"
