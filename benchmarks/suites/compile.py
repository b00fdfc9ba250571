"""The compile suite: time to a first result in fresh processes, and against depth."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import routerjax as rj
from benchmarks.suites import checkpoints, rounds, session
from benchmarks.suites.rounds import Contestant, Work
from benchmarks.suites.router import fit

_ROOT = pathlib.Path(__file__).parents[2]
_SPAN = np.array([[0, 1]], np.int32)
# So many prompts of 16 tokens are no longer few: one program at any depth (`capture`).
_ROWS = 32
_IMPORT_OURS = "import routerjax as rj; rj.Encoder; rj.Router"
_IMPORT_BELOW = "import jax, transformers as t; t.AutoTokenizer; t.PreTrainedTokenizerFast"


def compile(s: session.Session) -> dict[str, Any]:
    """`experiments.route`, imports and loading included, with a compilation cache and without."""
    with tempfile.TemporaryDirectory() as folder:
        fit(s).save(f"{folder}/router")
        warm = f"{folder}/cache"

        def route(cache: str) -> str:
            return _python(
                ["-m", "experiments.route", f"--router={folder}/router", "--query=What is 7 + 5?"],
                cache,
            )

        def cold(number: int) -> str:
            return route(f"{folder}/cold{number}")

        contestants = [
            Contestant("first answer of a fresh process, warm cache", lambda _: route(warm),
                       in_process=False),
            Contestant("first answer of a fresh process, no cache", cold, compiles=False,
                       in_process=False),
            Contestant("importing Encoder and Router", lambda _: _python(["-c", _IMPORT_OURS]),
                       compiles=False, in_process=False),
            Contestant("importing jax and transformers' tokenizers",
                       lambda _: _python(["-c", _IMPORT_BELOW]), compiles=False,
                       in_process=False),
        ]  # fmt: skip

        def agree(results: dict[str, str]) -> dict[str, float]:
            one, other = (
                np.array(list(json.loads(results[c.name])["probabilities"].values()))
                for c in contestants[:2]
            )
            return {"P(correct)": rounds.require("P(correct)", float(np.abs(one - other).max()), 0)}

        result = rounds.in_rounds(contestants, min(s.rounds, s.scale.processes), Work(), agree)
    rows = {row["contestant"]: row["seconds"] for row in result["rows"]}
    depth = _depth(s)
    shallow, deep = depth["seconds"][0], depth["seconds"][-1]
    return result | {
        "title": "Wall time of processes from start to end.",
        "figures": {
            "importing routerjax over importing jax and transformers": rows[contestants[2].name]
            / rows[contestants[3].name],
            f"compiling {s.scale.depths[-1]} blocks over {s.scale.depths[0]}": deep / shallow,
        },
        "scaling": [depth],
    }


def _depth(s: session.Session) -> dict[str, Any]:
    """A batch of a new shape each time, so that it is compiled each time."""
    with tempfile.TemporaryDirectory() as folder:

        def first_batch(depth: int) -> Callable[[], Any]:
            path = pathlib.Path(folder) / str(depth)
            checkpoints.write(path, checkpoints.tiny(depth), "float32")
            encoder = rj.Encoder.from_pretrained(path, mesh=rj.make_mesh("data:1"))
            lengths = itertools.count(16)

            def run() -> None:
                length = next(lengths)
                tokens_BT = np.zeros((_ROWS, length), np.int32)
                batch = tokens_BT, np.full(_ROWS, length, np.int32), np.tile(_SPAN, (_ROWS, 1))
                encoder.forward(batch, rj.Selection((depth,), ("mean",))).block_until_ready()

            return run

        what = "first batch of a new shape, compiled"
        return rounds.scaling(what, "blocks", s.scale.depths, first_batch, s.rounds)


def _python(arguments: list[str], cache: str = "") -> str:
    """Standard output of a fresh interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    done = subprocess.run([sys.executable, *arguments], cwd=_ROOT, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return done.stdout
