"""What an extraction takes on chips that are not here, by the compilation of the tpu suite."""

import math
from typing import Any

import jax

import routerjax as rj
from benchmarks.suites.tpu import Rate, measure
from benchmarks.suites.tpu_programs import Model


class ChipTimer:
    """The seconds of a batch by the compiler's estimate; a `timer` of `rj.estimate`.

    Args:
      topology: That the encoder was loaded for.

    Attributes:
      told: JSON values of the last batch: `chip`, `chip_bytes`, `fits`, and then `memory_bytes`,
        `cycles` and `share_of_matrix_rate`, or `why` it does not fit.
    """

    def __init__(self, topology: str):
        self.topology, self.told = topology, dict[str, Any]()

    def __call__(
        self, encoder: rj.Encoder, shape: tuple[int, int], selection: rj.Selection, n_before: int
    ) -> float:
        rate = Rate(self.topology, encoder.mesh.devices.flat[0])
        dtype = encoder.identity["compute_dtype"]
        model = Model(encoder.config, encoder.mesh, selection, n_before, dtype)
        program = model.prefill(*shape, n_before)
        self.told = {"chip": rate.chip.name, "chip_bytes": rate.chip.hbm_bytes}
        try:
            row = measure(program.compile(), program, rate, encoder.mesh.size)
        except jax.errors.JaxRuntimeError as error:
            # What does not fit is refused while it is compiled.
            self.told |= {"fits": False, "why": str(error).partition("\n")[0]}
            return math.nan
        kept = "fits", "memory_bytes", "cycles", "share_of_matrix_rate"
        self.told |= {name: row[name] for name in kept}
        return row["cycles"] / rate.chip.hertz
