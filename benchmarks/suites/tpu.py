"""The tpu suite: every program of the line compiled for described chips, none of which is here.

All numbers are the compiler's estimate of its own schedule, not a run.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.suites import tpu_programs
from benchmarks.suites.hlo_costs import Cost, analyse
from benchmarks.suites.session import Session
from benchmarks.suites.tpu_programs import Model, Program
from routerjax.runtime.chips import chip_of, topology_devices
from routerjax.runtime.devices import make_mesh

SHAPES = ("qwen3-0.6b", "qwen3-8b", "gpt-oss-20b")
ESTIMATE = "Compiler's estimate, not a run."


def tpu(s: Session) -> dict[str, Any]:
    """A row a program, shape and topology."""
    shapes = s.wanted_shapes(SHAPES)
    rows: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    for topology in s.topologies:
        devices = list(topology_devices(topology))
        rate = Rate(topology, devices[0])
        rates |= {f"{topology}, {name}": value for name, value in rate.to_json().items()}
        for i, shape in enumerate(shapes):
            # What follows a prefill differs by the width alone: of one shape it says enough.
            made = _of_shape(shape, devices, rate, s.tpu_mesh, i == 0, s.tpu_programs)
            for row in made:
                rows.append(row)
                # A run that is cut short keeps what it has.
                s.folder.write_json("tpu.json", {"rows": rows})
    if s.tpu_programs and not rows:
        raise ValueError(
            f"--programs: none is called {', '.join(s.tpu_programs)}; expected some such as "
            f"prefill:128, 'prefill behind a prefix:512' or 'a decision:32'"
        )
    return {
        "title": f"{ESTIMATE} Cycles of one chip, all operations one after the other; the share is "
        f"that of the rate at which the compiler schedules a bfloat16 product of 8192 x 8192 x "
        f"8192. What has no estimate (collectives, gathers, fused kernels) counts as its bytes and "
        f"operations take at the chip's rates, at least.",
        "rows": rows,
        "rates": rates,
    }


class Rate:
    """What the compiler makes of a chip at its best.

    Args:
      topology: Its name.
      device: One of its chips.

    Attributes:
      chip: Its kind.
      flops: Floating-point operations of a large bfloat16 product in a cycle.
      n_bytes: Bytes read and written in a cycle by one pass over a large array.
      scores: Scores of attention in a cycle, by what an online softmax does to each.
      ring_bytes: That a chip sends and receives in a cycle along one axis of the interconnect.
    """

    def __init__(self, topology: str, device: jax.Device):
        self.topology, self.chip = topology, chip_of(topology)
        self.flops, self.n_bytes = (
            amount / analyse(text_of(compiled)).cycles
            for amount, compiled in (
                tpu_programs.matrix_product(device),
                tpu_programs.copied_array(device),
            )
        )
        few, many = (tpu_programs.softmaxed(device, n_steps) for n_steps in (8, 24))
        # The difference, as what is read and written has no share in a kernel's scores.
        few_cycles, many_cycles = (analyse(text_of(each[1])).cycles for each in (few, many))
        self.scores = (many[0] - few[0]) / (many_cycles - few_cycles)
        self.ring_bytes = self.chip.ring_bytes_per_second / self.chip.hertz

    def to_json(self) -> dict[str, float]:
        """By what they are of."""
        return {
            "flops a cycle": self.flops,
            "bytes a cycle": self.n_bytes,
            "scores a cycle": self.scores,
        }

    def collective_cycles(self, cost: Cost, n_chips: int) -> float:
        """Of an exchange over a ring of chips: an all-reduce passes everything twice.

        Of a permutation, what nothing runs beside.
        """
        if cost.opcode == "collective-permute":
            return cost.waits
        n, twice = cost.n_devices or n_chips, 2 if cost.opcode == "all-reduce" else 1
        return twice * cost.n_bytes * (n - 1) / n / self.ring_bytes


def _of_shape(
    shape: str,
    devices: list[jax.Device],
    rate: Rate,
    mesh: str,
    with_others: bool,
    wanted: list[str],
) -> Iterator[dict[str, Any]]:
    try:
        chips = (
            make_mesh(mesh, devices)
            if mesh
            else tpu_programs.smallest_mesh(shape, devices, rate.chip.hbm_bytes)
        )
    except ValueError as error:
        yield _row_of(shape, rate, "none", 1, Program("prefill", 0, 0, 0.0, list)) | {
            "fits": False, "why": str(error)
        }  # fmt: skip
        return
    model = Model(tpu_programs.config_of(shape), chips)
    others = model.others() if with_others else ()
    programs = [*model.prefills(), *others]
    for program in programs:
        if wanted and program.label not in wanted:
            continue
        n_chips = chips.size if program.tokens else 1
        row = _row_of(shape, rate, dict(chips.shape), n_chips, program)
        start = time.monotonic()
        try:
            compiled = program.compile()
        except jax.errors.JaxRuntimeError as error:
            # What does not fit is refused while it is compiled.
            row |= {"fits": False, "why": str(error).partition("\n")[0][:300]}
        else:
            row |= measure(compiled, program, rate, n_chips)
        row["seconds_compiling"] = time.monotonic() - start
        print(f"{rate.topology}, {shape}: {line(row)}", flush=True)
        yield row


def _row_of(shape: str, rate: Rate, mesh: Any, n_chips: int, program: Program) -> dict[str, Any]:
    return {
        "topology": rate.topology,
        "shape": shape,
        "program": program.name,
        "batch": program.batch,
        "tokens": program.tokens,
        "prefix_tokens": program.prefix_tokens,
        "chips": n_chips,
        "mesh": mesh,
        "flops": program.flops,
        "chip_bytes": rate.chip.hbm_bytes,
        "cycles": None,
        "share_of_matrix_rate": None,
    }


def measure(
    compiled: list[jax.stages.Compiled], program: Program, rate: Rate, n_chips: int
) -> dict[str, Any]:
    """What a row says of compiled programs that follow one another.

    Args:
      compiled: They.
      program: What they are.
      rate: Of the chips.
      n_chips: That share the work.
    """
    analyses = [
        # The chip sends half of what a ring takes to either neighbour.
        analyse(text_of(each), program.data_trips, rate.ring_bytes / 2)
        for each in compiled
    ]
    costs = [cost for analysis in analyses for cost in analysis.costs]
    exchanged = [cost for cost in costs if cost.collective]
    kernels = [cost for cost in costs if cost.kernel]
    collective_cycles = sum(rate.collective_cycles(cost, n_chips) for cost in exchanged)
    # Its units work side by side.
    kernel_cycles = max(
        program.kernel_flops / n_chips / rate.flops,
        program.kernel_scores / n_chips / rate.scores,
        sum(cost.n_bytes for cost in kernels) / rate.n_bytes,
    ) if kernels else 0.0  # fmt: skip
    others = [cost for cost in costs if not (cost.estimated or cost.collective or cost.kernel)]
    gathered = sum(2 * cost.n_bytes for cost in others if not cost.beside) / rate.n_bytes
    cycles = sum(cost.cycles for cost in costs) + collective_cycles + kernel_cycles + gathered
    moved = [cost for cost in costs if cost.moves]
    return {
        "fits": True,
        "memory_bytes": max(_memory(each.memory_analysis()) for each in compiled),
        "cycles": cycles,
        "share_of_matrix_rate": (program.flops / n_chips / cycles / rate.flops if cycles else 0.0)
        or None,
        "dearest": [
            {"name": cost.name, "cycles": cost.cycles, "times": cost.times}
            for cost in sorted(costs, key=lambda cost: -cost.cycles)[:5]
        ],
        "moved": {"bytes": sum(cost.n_bytes for cost in moved),
                  "cycles": sum(cost.cycles for cost in moved)},
        "collectives": {"count": sum(cost.times for cost in exchanged),
                        "bytes": sum(cost.n_bytes for cost in exchanged),
                        "cycles_at_least": collective_cycles,
                        "share_of_cycles": collective_cycles / cycles if exchanged else 0.0},
        "kernels": {"count": sum(cost.times for cost in kernels),
                    "scores": program.kernel_scores if kernels else 0.0,
                    "cycles_at_least": kernel_cycles,
                    "share_of_cycles": kernel_cycles / cycles if kernels else 0.0},
        "loops_of_data": sum(analysis.data_loops for analysis in analyses),
        "loops_of_data_run": program.data_trips,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row in short."""
    what = f"{row['program']}, {row['batch']} x {row['tokens']}"
    if row["cycles"] is None:
        return f"{what}: {row['why']}"
    share = row["share_of_matrix_rate"]
    shown = "" if share is None else f", {share:.1%} of the matrix rate"
    loops = row["loops_of_data"]
    assumed = f", {loops} loop(s) taken to run {row['loops_of_data_run']:g} times" if loops else ""
    return f"{what}: {row['cycles']:,.0f} cycles{shown}{assumed}"


def text_of(compiled: jax.stages.Compiled) -> str:
    """The scheduled program."""
    text = compiled.as_text()
    assert text, "the TPU's compiler gives a text"
    return text


def _memory(stats: Any) -> int:
    """Bytes that a program holds on a chip."""
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )
