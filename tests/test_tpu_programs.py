"""Programs compiled for a TPU that is not here: what is read in their text, and what a row says."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

import routerjax as rj
from benchmarks.suites import guard, hlo, hlo_costs, table, tpu, tpu_job, tpu_programs
from benchmarks.suites.session import Session
from routerjax.data.simulated.simulate import simulate
from routerjax.encoder import load
from routerjax.runtime.chips import CHIPS
from routerjax.runtime.devices import make_mesh
from routerjax.runtime.tuning import Tuning

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'

# A loop of 7 steps that counts in a copy up to a bound it was given, with a loop of 3 steps inside;
# one in which data decide; a conditional; and the tables of the text's head. @7@ stands for cycles.
TEXT = (pathlib.Path(__file__).parent / "tpu_program.hlo").read_text()


def text() -> str:
    whole = TEXT
    for cycles in (7, 10, 50, 100, 1000):
        whole = whole.replace(f"@{cycles}@", CYCLES % cycles)
    return whole


def test_bodies_count_as_often_as_they_run():
    costs = hlo_costs.analyse(text()).costs
    of = {cost.name.rpartition("(")[2].rstrip(")"): (cost.times, cost.cycles) for cost in costs}
    assert of["dot.5"] == (7, 700), "a bound handed to the loop, a counter that is copied"
    assert of["y.3"] == (21, 210), "a loop inside, that counts down from 6 by 2 while above 1"
    assert of["y.10"] == (1, 7), "of a conditional the dearest branch"
    assert of["moved"] == (1, 50)


def test_a_loop_of_data_runs_as_often_as_is_assumed_and_is_told_of():
    once, often = hlo_costs.analyse(text()), hlo_costs.analyse(text(), 2.5)
    assert once.data_loops == often.data_loops == 1
    assert once.cycles == 700 + 210 + 7 + 50 + 1000
    assert often.cycles - once.cycles == 1500


@pytest.mark.parametrize(
    ("was", "becomes", "trips"),
    [
        ("%i.4, %one.4), direction=GT", "%one.4, %i.4), direction=LT", 3),
        ("%i.4, %one.4), direction=GT", "%i.4, %one.4), direction=GE", 3),
        ("%one.4 = s32[]{:T(128)} constant(1)", "%one.4 = s32[]{:T(128)} constant(2)", 2),
        ("%i.4, %one.4), direction=GT", "%i.4, %one.4), direction=NE", None),
        ("body=%inner_body", 'body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}', 5),
        ("add(%i.3, %two.3)", "multiply(%i.3, %two.3)", 1),
    ],
)
def test_how_often_a_loop_runs(was, becomes, trips):
    assert text().count(was) == 1
    costs = hlo_costs.analyse(text().replace(was, becomes)).costs
    (inner,) = [cost for cost in costs if cost.name == "y.3"]
    assert trips is None or inner.times == 7 * trips


def test_operations_are_named_by_the_line_that_wrote_them():
    names = [cost.name for cost in hlo_costs.analyse(text()).costs]
    assert "dot_general at a.py:30 (dot.5)" in names, "not the library's line"
    assert "moved" in names, "no line is known"


def test_what_is_moved_exchanged_and_opaque():
    costs = hlo_costs.analyse(text()).costs
    moved = [cost for cost in costs if cost.moves and cost.n_bytes > 100 and not cost.beside]
    assert [(cost.name, cost.n_bytes) for cost in moved] == [("moved", 1024)]
    (exchanged,) = [cost for cost in costs if cost.collective]
    assert exchanged.opcode == "all-reduce" and exchanged.n_bytes == 1024
    (kernel,) = [cost for cost in costs if cost.kernel]
    assert kernel.n_bytes == 1024 + 1024 + 512, "what it writes and what it reads"
    (beside,) = [cost for cost in costs if cost.beside]
    assert beside.n_bytes == 512


# Permutations, two of them one way at a time, and sums of which each chip keeps a part.
EXCHANGE = (pathlib.Path(__file__).parent / "tpu_exchange.hlo").read_text()


def test_of_a_permutation_what_nothing_runs_beside_counts():
    """400 bytes take 100 cycles; what goes the same way waits for what was sent before it."""
    text = re.sub("@(\\d+)@", lambda match: CYCLES % int(match[1]), EXCHANGE)
    analysis = hlo_costs.analyse(text, link_bytes=4)
    of = {cost.name: cost for cost in analysis.costs}
    assert of["up.1"].waits == of["down.1"].waits == 0, "150 cycles run beside them"
    assert of["up.2"].waits == 200 - 150 - 20
    assert of["now"].waits == 100
    assert analysis.cycles == 150 + 20 + 1, "what waits is no work"
    assert {of[name].n_bytes for name in ("up.1", "up.2", "down.1", "now")} == {400}
    assert of["sums"].opcode == "reduce-scatter" and of["sums"].n_bytes == 1024
    assert not any(cost.kernel for cost in analysis.costs), "a bitcast is no kernel"


@pytest.mark.parametrize(
    ("shape", "n_bytes"),
    [
        ("f32[]{:T(128)}", 4),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("(s32[4]{0:T(128)}, pred[8]{0})", 24),
        ("s4[10]{0}", 5),
        ("f8e4m3fn[3]{0}", 3),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape(shape, n_bytes):
    assert hlo.shape_bytes(shape) == n_bytes


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("channel_id=1, replica_groups={{0,1,2},{4,5,6}}, to_apply=%add", 3),
        ("channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add", 4),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a','c'}, x=y", 8),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, x=y", 4),
        ("to_apply=%add", 0),
    ],
)
def test_devices_that_exchange_something(attributes, size):
    assert hlo.group_size(attributes) == size


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="without ENTRY"):
        hlo_costs.analyse("module @jit_f {\n}")


class Compiled:
    """Stands for `jax.stages.Compiled`."""

    def __init__(self, text: str):
        self.as_text = lambda: text

    def memory_analysis(self):
        sizes = {"argument": 100, "output": 20, "temp": 3, "alias": 10}
        return types.SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in sizes.items()})


_RATE = tpu.Rate


def rate(topology: str = "v5e:2x2") -> tpu.Rate:
    made = _RATE.__new__(_RATE)
    made.topology, made.chip = topology, CHIPS["v5e"]
    made.flops, made.n_bytes, made.ring_bytes, made.scores = 100.0, 10.0, 4.0, 2.0
    return made


def test_a_row_says_what_the_program_takes():
    program = tpu_programs.Program("prefill", 2, 4, 2e5, list, kernel_flops=1e4, data_trips=2.0)
    row = tpu._row_of("some", rate(), {"data": 1, "model": 2}, 2, program)
    row |= tpu.measure([Compiled(text())], program, rate(), 2)
    known = 700 + 210 + 7 + 50 + 2000
    exchanged, kernel = 2 * 1024 / 2 / 4, 2560 / 10
    assert row["collectives"]["cycles_at_least"] == exchanged
    assert row["kernels"]["cycles_at_least"] == kernel, "its bytes take longer than its products"
    assert row["cycles"] == pytest.approx(known + exchanged + kernel, rel=0.05)
    assert row["share_of_matrix_rate"] == pytest.approx(2e5 / 2 / row["cycles"] / 100)
    assert row["memory_bytes"] == 113 and row["dearest"][0]["cycles"] == 2000
    assert {"topology", "shape", "batch", "tokens"} <= row.keys()
    many = dataclasses.replace(program, kernel_scores=4e3)
    kernels = tpu.measure([Compiled(text())], many, rate(), 2)["kernels"]
    assert kernels["cycles_at_least"] == 4e3 / 2 / 2, "the softmax of its scores takes longest"
    assert "1 loop(s) taken to run 2 times" in tpu.line(row)


def test_a_kernels_scores_are_those_of_its_tiles():
    config, mesh = tpu_programs.config_of("gpt-oss-20b"), make_mesh("data:1")
    model = tpu_programs.Model(config, mesh)
    assert model._kernel_scores(512, 0) == 0, "a CPU has no such kernel"
    model.tuning = Tuning.tpu()
    assert model._kernel_scores(128, 0) == 0, "no kernel"
    tile, layers, heads = 512**2, 12, 64
    assert model._kernel_scores(512, 0) == heads * 2 * layers * tile
    # Half of the layers see 128 tokens: of each tile of queries the one before and its own.
    assert model._kernel_scores(2048, 0) == heads * layers * tile * (10 + 7)
    ragged = model.prefill(1, 128).kernel_flops
    assert ragged == 128 * 24 * 4 * 3 * 2 * 2880**2, "four experts of three products"
    dense = model.prefill(1, 2048).flops
    hidden = model.config.flops(2048, 24) - dense
    assert hidden == 4 * 64 * heads * layers * (2 * 2048**2 - 17 * tile)


def test_the_table_says_that_nothing_ran(monkeypatch):
    program = tpu_programs.Program("prefill", 2, 4, 2e5, list)
    row = tpu._row_of("some", rate(), {}, 1, program)
    rows = [row | tpu.measure([Compiled(text())], program, rate(), 1),
            row | {"fits": False, "why": "too large"}]  # fmt: skip
    result = {"title": tpu.ESTIMATE, "rows": rows, "minutes": 1.0}
    shown = table.suite("tpu", result)
    assert "Compiler's estimate, not a run." in shown and "### some on v5e:2x2" in shown
    assert "| prefill | 2 x 4 | 1 |" in shown and "too large" in shown
    assert guard.ratios({"tpu": result}) == {} and table.picture({"tpu": result}) is None


def session(tmp_path, **flags) -> Session:
    fields = {"scale": "cpu", "rounds": 1, "seed": 0, "mesh": "", "programs": [], "shapes": []}
    fields |= {"topology": ["v5e:2x2"], "workdir": tmp_path}
    return Session(types.SimpleNamespace(**fields | flags))


def test_a_shape_that_the_suite_has_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--shapes: expected some of qwen3-0.6b"):
        tpu.tpu(session(tmp_path, shapes=["smollm2-135m"]))


def test_only_the_programs_that_are_wanted_are_compiled_and_each_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu, "topology_devices", lambda topology: jax.local_devices())
    monkeypatch.setattr(tpu, "Rate", lambda topology, device: rate(topology))
    compiled = [Compiled(text())]
    monkeypatch.setattr(tpu_programs.Model, "_compiled", lambda self, *shape: compiled[0])
    names = ["prefill:128", "prefill behind a prefix:512"]
    for shape in ("qwen3-0.6b", "qwen3-8b"):
        result = tpu.tpu(session(tmp_path, shapes=[shape], programs=names))
        shapes = [(row["batch"], row["tokens"], row["prefix_tokens"]) for row in result["rows"]]
        assert shapes == [(64, 128, 0), (16, 512, 64)]
        assert len(json.loads((tmp_path / "tpu.json").read_text())["rows"]) == 2
    assert result["rows"][0]["chips"] == 2, "8B does not fit one chip of 16 GiB"
    with pytest.raises(ValueError, match="--programs: none is called prefill:7"):
        tpu.tpu(session(tmp_path, shapes=["qwen3-0.6b"], programs=["prefill:7"]))


def test_eight_billion_parameters_are_described_without_one_of_them():
    devices = jax.local_devices()
    mesh = tpu_programs.smallest_mesh("qwen3-8b", devices, 16 * 2**30)
    assert mesh.size == 2, "one chip of 16 GiB cannot hold them"
    leaves = jax.tree.leaves(tpu_programs.Model(tpu_programs.config_of("qwen3-8b"), mesh).params)
    assert sum(leaf.size for leaf in leaves) > 7e9
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    with pytest.raises(ValueError, match="does not fit: of 1 chips"):
        tpu_programs.smallest_mesh("qwen3-8b", devices[:1], 16 * 2**30)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_program_compiles_for_v5e():
    """In a process of its own, because the compiler prints and keeps what it likes."""
    done = subprocess.run([sys.executable, "-c", _COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cycles, share = map(float, done.stdout.split())
    assert 8e6 < cycles < 2e7 and 0.5 < share <= 1.001


_COMPILE = """
import jax
jax.config.update("jax_platforms", "cpu")
from benchmarks.suites import tpu, tpu_programs
from routerjax.runtime.chips import topology_devices
rate = tpu.Rate("v5e:2x2", topology_devices("v5e:2x2")[0])
flops, compiled = tpu_programs.matrix_product(topology_devices("v5e:2x2")[0])
program = tpu_programs.Program("product", 1, 0, flops, lambda: [compiled])
row = tpu.measure(program.compile(), program, rate, 1)
print(row["cycles"], row["share_of_matrix_rate"])
"""


def test_a_job_is_estimated_for_chips_that_are_not_here(tiny_encoder_folder, monkeypatch):
    topology = "v5e:1x2"
    monkeypatch.setattr(load, "topology_devices", lambda topology: jax.local_devices()[:2])
    monkeypatch.setattr(tpu_job, "Rate", lambda topology, device: rate(topology))
    shapes = []

    def compiled(model, *shape):
        shapes.append((model.selection.layers, *shape))
        if len(shapes) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 17 GiB of 16\nmore")
        return Compiled(text())

    monkeypatch.setattr(tpu_programs.Model, "_compiled", compiled)
    encoder = rj.Encoder.from_pretrained(tiny_encoder_folder, topology=topology, mesh="auto")
    loaded = rj.Encoder.from_pretrained(tiny_encoder_folder, mesh="data:2")
    assert encoder.param_bytes == loaded.param_bytes and encoder.n_devices == 2
    data, timer = simulate(20), tpu_job.ChipTimer(topology)
    told = rj.estimate(encoder, data, layers=[1, 3], timer=timer)
    assert told["devices"] == 2 and shapes[0][0] == (1, 3)
    assert timer.told["fits"] and timer.told["memory_bytes"] == 113
    batch = encoder.flops(shapes[0][2], 3) * shapes[0][1]
    seconds = timer.told["cycles"] / CHIPS["v5e"].hertz * told["flops"] / batch
    assert told["hours"] == pytest.approx(seconds / 3600)
    assert math.isnan(rj.estimate(encoder, data, timer=timer)["hours"])
    assert not timer.told["fits"] and timer.told["why"].endswith("17 GiB of 16")
    monkeypatch.setattr(load, "chip_of", lambda topology: types.SimpleNamespace(hbm_bytes=1000))
    with pytest.raises(ValueError, match="each device would hold"):
        rj.Encoder.from_pretrained(tiny_encoder_folder, topology=topology, mesh="auto")
