"""stablehlo: a process without routerjax loads the program and finds the router's probabilities."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

import routerjax as rj
from routerjax.encoder.selection import Selection
from routerjax.features.recipe import Recipe
from routerjax.trunk.calibrate import Curve
from tests.export import by_hand

LOADER = """
import json, sys
sys.modules["routerjax"] = None
import jax, jax.export, numpy as np
description = json.load(open("program.json"))
run = jax.export.deserialize(open(description["program"]["file"], "rb").read()).call
states = np.load("states.npz")
inputs = [states[str(e)] for e in range(len(description["inputs"]))]
rows = [run(*(h[:n] for h in inputs)) for n in (1, 40)]
np.savez("found.npz", *map(np.asarray, rows))
"""


def two_encoders(**changes):
    rng = np.random.default_rng(3)
    parts = [
        by_hand.part(rng, [(4, "last"), (2, "last")], width=3),
        by_hand.part(rng, Selection((0, 4), ("query_mean", "at50")).sites, 1, 4, hidden=9),
        by_hand.part(rng, [(1, "max")], 1, 2, hidden=9),
    ]
    return by_hand.router(parts, Recipe.all_layers(), kernel=True, **changes)


def test_another_process_finds_the_probabilities_for_any_number_of_rows(tmp_path):
    router = two_encoders(trust=True)
    rj.export.stablehlo(router, tmp_path)
    states = by_hand.states(router)
    np.savez(tmp_path / "states.npz", **{str(e): h_NLPD for e, h_NLPD in enumerate(states)})
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    job = subprocess.run([sys.executable, "-c", LOADER], cwd=tmp_path, env=environment,
                         capture_output=True, text=True)  # fmt: skip
    assert job.returncode == 0, job.stderr
    p_NM = router.predict(router.features.apply(states))
    assert np.ptp(p_NM, axis=0).min() > 0.1
    found = np.load(tmp_path / "found.npz")
    for n, name in zip((1, 40), found, strict=True):
        np.testing.assert_allclose(found[name], p_NM[:n], atol=1e-5)
    description = json.loads((tmp_path / "program.json").read_text())
    data = (tmp_path / "program.jax_export").read_bytes()
    assert hashlib.sha256(data).hexdigest() == description["program"]["sha256"]
    assert [each["shape"] for each in description["inputs"]] == [["b", 2, 1, 12], ["b", 3, 3, 9]]
    assert description["inputs"][1]["layers"] == [0, 1, 4]
    assert description["inputs"][1]["encoder"]["encoder_id"] == "org/encoder-1"
    assert description["output"]["targets"] == list(router.targets)
    assert jax.export.deserialize(data).platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_a_calibration_is_that_of_the_router_at_its_ends(method):
    from routerjax.export import program

    curve = {
        "temperature": Curve(method, 0.4),
        "platt": Curve(method, 0.4, 0.3),
        "isotonic": Curve(method, knots=((0.2, 0.5), (0.1, 0.7))),
    }[method]
    p_N = np.float32([0, 1e-9, 1e-6, 0.1, 0.2, 0.35, 0.5, 0.9, 1 - 2**-20, 1 - 2**-24, 1])
    found_N = jax.jit(lambda p_N: program._of_curve(curve, p_N))(p_N)
    np.testing.assert_allclose(found_N, curve.apply(p_N), atol=1e-5)
