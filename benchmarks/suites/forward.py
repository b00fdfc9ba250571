"""The forward suite: batches of full rows through an encoder, all states pooled on the device.

What an encoder takes without its host: no tokenising, no padding, nothing is fetched or written.
"""

from typing import Any

import jax
import numpy as np

import routerjax as rj
from benchmarks.suites import machine, rounds, session
from benchmarks.suites.rounds import Contestant, Work

_LENGTH = 128
_WORDS = 30_000


def forward(s: session.Session) -> dict[str, Any]:
    """Each shape in each dtype, by tokens of a batch."""
    result: dict[str, Any] = {"title": "", "rows": [], "agreement": {}, "left_out": [], "rates": {}}
    titles = []
    for name, _, _ in s.shapes:
        for encoder in s.in_each_dtype(s.checkpoint(name)):
            dtype = encoder.identity["compute_dtype"]
            one = of_encoder(s, encoder)
            del encoder  # Its memory is the next one's.
            for row in one["rows"]:
                row["contestant"] = f"{name} in {dtype}: {row['contestant']}"
            result["rows"] += one["rows"]
            result["rates"] |= {f"{name} {key}": value for key, value in one["rates"].items()}
        titles.append(name)
    result["title"] = (
        f"Random weights, rows of {_LENGTH} tokens without padding, all hidden states, last and "
        f"mean, pooled and left on the device: {', '.join(titles)}. Seconds are a batch's, so that "
        f"'times ours' of batches of other sizes, or in another dtype, says nothing by itself."
    )
    return result


def of_encoder(s: session.Session, encoder: rj.Encoder) -> dict[str, Any]:
    """One encoder, by tokens of a batch."""
    times = 2 if machine.on_cpu() else 20
    selection = rj.Selection(tuple(range(encoder.n_states)), ("last", "mean"))

    def contestant(n_rows: int) -> Contestant:
        rng = np.random.default_rng(s.seed)
        tokens_BT = rng.integers(100, _WORDS, (n_rows, _LENGTH), np.int32)
        lengths_B = np.full(n_rows, _LENGTH, np.int32)
        spans_B2 = np.tile(np.array([[0, _LENGTH]], np.int32), (n_rows, 1))
        batch = jax.device_put((tokens_BT, lengths_B, spans_B2))

        def run(number: int) -> np.ndarray:
            for _ in range(times):
                h_LPBD = encoder.forward(batch, selection)
            return np.asarray(h_LPBD.block_until_ready()[-1, -1, 0])

        flops = n_rows * encoder.flops(_LENGTH, encoder.n_states - 1)
        work = Work(flops, tokens=n_rows * _LENGTH)
        return Contestant(f"a batch of {n_rows * _LENGTH:,} tokens", run, times, work=work)

    contestants = [contestant(n_tokens // _LENGTH) for n_tokens in s.scale.forward_tokens]
    dtype = encoder.identity["compute_dtype"]
    return rounds.in_rounds(contestants, s.rounds, Work(), _finite, dtype)


def _finite(results: dict[str, Any]) -> dict[str, float]:
    """A state of each: batches differ in their rows, which other suites compare."""
    for name, state_D in results.items():
        rounds.require(name, float(not np.isfinite(state_D).all()), 0.0)
    return {}
