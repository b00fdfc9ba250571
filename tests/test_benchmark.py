"""The benchmark's harness, on contestants that take no time, and one suite by the script."""

import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import routerjax as rj
from benchmarks.suites import (
    capture,
    checkpoints,
    guard,
    host,
    hugging_face,
    machine,
    parts,
    rounds,
    session,
    sweep,
    table,
    trunk,
    turns,
)
from benchmarks.suites.registry import SUITES
from benchmarks.suites.rounds import Contestant, Disagreement, Work

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def still_machine(monkeypatch):
    """Rates that nobody has to measure: 1 TFLOP/s, 100 GB/s."""
    monkeypatch.setattr(machine, "matrix_rate", lambda dtype: lambda: 1e12)
    monkeypatch.setattr(machine, "bandwidth", lambda: lambda: 1e11)


def race(contestants, agree=lambda results: {}, n_rounds=3, work=None):
    return rounds.in_rounds(contestants, n_rounds, work or Work(1e9, 1e6), agree)


def test_contestants_run_in_rounds_after_a_warm_up(still_machine):
    ran = []
    contestants = [
        Contestant(name, lambda number, name=name: ran.append((name, number))) for name in "AB"
    ]
    found = race(contestants)
    assert ran == [(name, number) for number in range(4) for name in "AB"]
    assert [len(row["seconds_of_rounds"]) for row in found["rows"]] == [3, 3]
    assert found["rows"][0]["ratio"]["rounds"] == [1.0, 1.0, 1.0]


def test_no_time_is_shown_where_results_differ(still_machine):
    def agree(results):
        return {"value": rounds.require("value", abs(results["A"] - results["B"]), 0.5)}

    assert race([Contestant("A", lambda t: 1), Contestant("B", lambda t: 1.25)], agree)["agreement"]
    with pytest.raises(Disagreement, match="value"):
        race([Contestant("A", lambda t: 1), Contestant("B", lambda t: 2)], agree)
    with pytest.raises(Disagreement):
        rounds.require("value", float("nan"), 1)


def test_times_are_of_the_whole_work_and_compiling_stands_apart(still_machine, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def takes(first, then):
        def run(number):
            clock[0] += then if number else first

        return run

    found = race([Contestant("jit", takes(5, 1)), Contestant("tenth", takes(0.3, 0.3), 0.1, False)])
    jit, tenth = found["rows"]
    assert jit["seconds"] == pytest.approx(1) and jit["seconds_compiling"] == pytest.approx(4)
    assert tenth["seconds"] == pytest.approx(3) and tenth["seconds_compiling"] is None
    assert tenth["ratio"]["median"] == pytest.approx(3)
    # 1 GFLOP at 1 TFLOP/s is 1 ms, 1 MB at 100 GB/s a hundredth of that.
    assert jit["limit"] == "compute" and jit["mfu"] == pytest.approx(1e-3)
    memory_bound = race([Contestant("A", takes(1, 1))], work=Work(1e3, 1e10))["rows"][0]
    assert memory_bound["limit"] == "memory"
    assert memory_bound["share_of_limit"] == pytest.approx(0.1)


def test_work_may_be_known_only_when_it_has_been_done(still_machine):
    done = []
    found = race([Contestant("A", lambda number: done.append(number))],
                 work=lambda: Work(flops=1e9 * len(done)))  # fmt: skip
    assert found["rows"][0]["flops"] == 4e9


def test_the_work_of_an_epoch_is_that_of_its_products():
    # 10 rows through 3 x 4 and 4 x 2: forward, the weights' gradient, and that of the second
    # layer's input; 5 validation rows forward.
    forward, weights, inputs = 2 * 10 * (12 + 8), 2 * 10 * (12 + 8), 2 * 10 * 8
    assert trunk.epoch_flops((3, 4, 2), 10, 5) == forward + weights + inputs + 2 * 5 * (12 + 8)


def test_peak_memory_is_that_of_a_contestant(still_machine):
    if machine.reset_host_peak() is None:
        pytest.skip("no /proc/self/clear_refs")
    size = 2**27
    found = race([Contestant("large", lambda t: float(np.ones(size // 8).sum())),
                  Contestant("small", lambda t: 0.0)], n_rounds=1)  # fmt: skip
    large, small = (row["peak_host_growth_bytes"] for row in found["rows"])
    assert large > 0.9 * size > 4 * small


def test_memory_of_others_is_not_shown_as_a_contestants(still_machine, monkeypatch):
    peak = [100]
    monkeypatch.setattr(machine, "device_peak", lambda: peak[0])

    def needs(n):
        def run(number):
            peak[0] = max(peak[0], n)

        return run

    found = race([
        Contestant("ours", needs(500)),
        Contestant("theirs", needs(0)),
        Contestant("a process of its own", needs(900), in_process=False),
    ])  # fmt: skip
    ours, theirs, apart = found["rows"]
    assert ours["peak_device_bytes"] == 500 and theirs["peak_device_bytes"] is None
    assert not [key for key in apart if key.startswith("peak")]
    found |= {"title": "", "minutes": 1.0}
    assert "| a process of its own |" in table.suite("some", found)


def test_a_number_that_only_one_has_is_a_difference():
    ours, theirs = np.array([[1.0, np.nan], [3.0, 4.0]]), np.array([[1.0, np.nan], [3.0, 5.0]])
    assert rounds.largest(ours, theirs) == 1 and rounds.largest(ours, theirs, theirs) == 0.2
    assert rounds.largest_relative(ours, theirs) == 0.2
    ours[0, 0] = np.nan
    for error in (rounds.largest(ours, theirs), rounds.largest_relative(ours, theirs)):
        with pytest.raises(Disagreement):
            rounds.require("value", error, 10)


@pytest.mark.parametrize("wrong", ["nothing", "over devices", "a cell that has no AUC"])
def test_all_contestants_of_the_sweep_are_compared(still_machine, monkeypatch, wrong):
    data = type("Data", (), {"targets": ["a"], "select_targets": lambda self, _: self,
                             "__len__": lambda self: 9})()  # fmt: skip
    store = types.SimpleNamespace(layers=(0, 1, 2), poolings=("mean",))
    scale = types.SimpleNamespace(sweep_dims=(4, 8), sweep_share=0.5, scaling=False)
    s = types.SimpleNamespace(scale=scale, encoder=types.SimpleNamespace(width=8), data=data,
                              store=store, rounds=1, seed=0)  # fmt: skip

    def found(store, data, dims, layers=(0, 1, 2), poolings=("mean",), draws=0, devices=None):
        auc_LPWM = np.full((len(layers), len(poolings), len(dims), 1), 0.7)
        if wrong == "over devices" and devices is None:
            auc_LPWM[1] = 0.6
        if wrong == "a cell that has no AUC" and len(layers) == 3:
            auc_LPWM[:, :, 1] = np.nan
        return types.SimpleNamespace(cells={"cv_auc": auc_LPWM})

    monkeypatch.setattr(sweep.rj, "sweep", found)
    monkeypatch.setattr(session, "installed", lambda *names: False)
    if wrong == "nothing":
        assert len(sweep.sweep(s)["agreement"]) == 2
    else:
        with pytest.raises(Disagreement, match="AUC"):
            sweep.sweep(s)


def test_scaling_fits_the_exponent(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def squared(n):
        def run():
            clock[0] += n**2

        return run

    found = rounds.scaling("work", "size", [1, 2, 4], squared, rounds=2)
    assert found["seconds"] == [1, 4, 16] and found["exponent"] == pytest.approx(2)
    assert rounds.exponent([3], [1]) is None


def test_peers_read_runs_of_neighbours_from_all_over_the_file():
    np.testing.assert_array_equal(capture.spread_runs(100, 1.5), np.arange(100))
    np.testing.assert_array_equal(capture.spread_runs(20, 0.01), np.arange(20))
    rows = capture.spread_runs(32 * 40 + 5, 0.25)
    assert len(rows) == 10 * 32 and len(set(rows)) == len(rows)
    starts = rows[::32]
    assert (np.diff(rows.reshape(10, 32), axis=1) == 1).all()
    assert starts[0] == 0 and set(np.diff(starts)) == {128} and starts[-1] > 1000


def test_one_state_that_is_wrong_is_seen_among_larger_ones():
    theirs = (
        np.random.default_rng(0).normal(size=(40, 3, 2, 16))
        * np.array([1, 100, 100])[:, None, None]
    )
    ours = theirs * 1.01
    assert rounds.worst_state(ours, theirs) == pytest.approx(0.01)
    ours[:, 0, 1] += 0.5
    assert rounds.largest_relative(ours, theirs) < 0.05 < 0.4 < rounds.worst_state(ours, theirs)
    swapped = np.tile(theirs, (200, 1, 1, 1))
    swapped[[7, 8]] = swapped[[8, 7]]
    many = np.tile(theirs, (200, 1, 1, 1))
    assert rounds.worst_state(swapped, many) < 0.05 < 1 < rounds.worst_state(swapped, many, True)
    ours[3, 2, 0, 0] = np.nan
    with pytest.raises(rounds.Disagreement):
        rounds.require("nan", rounds.worst_state(ours, theirs), 0.05)


def test_states_are_compared_in_few_blocks_of_a_store():
    store = types.SimpleNamespace(block_rows=10, rows_of=lambda ids: np.array(ids, int))
    found = capture.Extracted(store, None)
    rows = np.random.default_rng(0).permutation(1000)[:500]
    chosen = rows[found.in_few_blocks([str(row) for row in rows])]
    blocks = set(chosen // 10)
    assert len(blocks) == capture._COMPARED and {0, 99} <= blocks
    assert set(chosen) == {row for row in rows if row // 10 in blocks}
    np.testing.assert_array_equal(found.in_few_blocks(["7", "3"]), [0, 1])


def test_the_table_shows_what_there_is(still_machine):
    found = race([Contestant("ours", lambda t: 0), Contestant("theirs", lambda t: 0, 0.5)])
    found |= {"title": "A title.", "left_out": ["torch is not installed"], "minutes": 1.0}
    text = table.suite("some", found)
    assert "| ours |" in text and "theirs (50% of it, scaled)" in text
    assert "left out: torch is not installed" in text and "padding" not in text
    assert table.picture({"some": found})[:4] == b"\x89PNG"


def test_the_guard_fails_under_half_only(tmp_path):
    times = {"ours": 1.0, "slow": 1.9, "fine": 2.1, "new": 1.0}
    rows = [{"contestant": name, "ratio": {"median": ratio}} for name, ratio in times.items()]
    path = tmp_path / "guard.json"
    path.write_text(json.dumps({"ratios": {"s: slow": 4.0, "s: fine": 4.0, "s: absent": 2.0}}))
    lines, fallen = guard.compare({"s": {"rows": rows}}, str(path))
    assert fallen == ["s: slow: 1.9 of 4.0"]
    assert any("s: absent" in line and "not measured here" in line for line in lines)
    assert any("s: new" in line and "not committed" in line for line in lines)
    with pytest.raises(ValueError, match="guard.json"):
        guard.compare({}, str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="none of its 3 ratios was measured here"):
        guard.compare({"other": {"rows": rows}}, str(path))


def test_random_checkpoints_are_read_as_any_other(tmp_path):
    from routerjax.encoder.encoder import Encoder

    path = checkpoints.write(tmp_path / "tiny", checkpoints.tiny(2), "bfloat16")
    encoder = Encoder.from_pretrained(path, compute_dtype="float32")
    data = checkpoints.queries(50, 20, seed=0)
    lengths_N = encoder.prompter(data.queries).lengths_N
    np.testing.assert_array_equal(lengths_N, [len(query.split()) for query in data.queries])
    assert 15 < lengths_N.mean() < 50 and lengths_N.max() > 2 * lengths_N.min()
    h_NLPD = encoder.capture(data.queries[:2])
    assert h_NLPD.shape == (2, 3, 2, 64) and 0 < h_NLPD.std() < 10


@pytest.mark.slow
def test_the_script_writes_json_table_and_picture(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", f"--workdir={tmp_path}", "--scale=guard",
         "--suite=probes", "--rounds=1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["results"]["probes"]["agreement"]["J"] < 1e-4
    assert found["command"].endswith("--suite=probes --rounds=1") and found["hardware"]["cores"]
    assert "| NumPy" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    assert json.loads((tmp_path / "guard.json").read_text())["ratios"]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["suite"] == ["probes"]


def test_encoders_compute_in_the_dtype_asked_for(tmp_path, tiny_encoder_folder):
    for asked, got in (("auto", "float32"), ("bfloat16", "bfloat16")):
        config = types.SimpleNamespace(
            workdir=tmp_path, scale="guard", rounds=1, seed=0, encoder=tiny_encoder_folder,
            compute_dtype=asked,
        )  # fmt: skip
        s = session.Session(config)
        assert s.encoder.identity["compute_dtype"] == got
        assert s.load(s.source, "auto").identity["compute_dtype"] == got
        assert machine.matrix_rate(got)() > 0
    assert machine.matrix_rate("float8")() > 0


@pytest.mark.slow
def test_the_host_suite_extracts_behind_a_device_that_answers_at_once(
    still_machine, tiny_encoder_folder, tiny_data, tmp_path, monkeypatch
):
    small = {"num_hidden_layers": 2, "hidden_size": 8}
    monkeypatch.setitem(checkpoints.SHAPES, host.SHAPE, small)
    monkeypatch.setattr("routerjax.store.shards.BLOCK_ROWS", 32)
    encoder = rj.Encoder.from_pretrained(tiny_encoder_folder, mesh=rj.make_mesh("data:1"))
    monkeypatch.setattr(rj.Encoder, "forward", None)  # Any batch would raise.
    run = types.SimpleNamespace(
        encoder=encoder, folder=rj.Folder(tmp_path), rounds=1, seed=0, asked_for=lambda n: n,
        some=lambda n: tiny_data.select(np.arange(n)),
    )  # fmt: skip
    found = host.host(run)
    assert found["rows"][-1]["contestant"].startswith("extract on 1 of")
    rates = found["figures"]
    assert {"queries/s on 1 cores", "write, MB a core-second"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())
    assert not (tmp_path / "host-store").exists()


def test_a_turn_ends_with_who_had_it(tmp_path):
    path = tmp_path / "turn"
    assert turns.holder(path) is None
    mine = turns.take(path)
    assert turns.holder(path) == os.getpid()
    script = """
import pathlib, sys
from benchmarks.suites import turns
turns.take(pathlib.Path(sys.argv[1]))
"""
    other = subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT)
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.5)
    mine.close()
    assert other.wait(60) == 0 and turns.holder(path) == other.pid


# A part that prepares, waits for its turn, and writes what it measures.
PART = """
import json, pathlib, sys, time
from benchmarks.suites import turns
flags = dict(flag.removeprefix("--").split("=") for flag in sys.argv[1:] if "=" in flag)
folder = pathlib.Path(flags["workdir"])
prepared = time.monotonic()
(folder.parent / f"{folder.name}-prepared").touch()
turn = turns.take(pathlib.Path(flags["turns"]))
began = time.monotonic()
if (folder.parent / "hangs").exists() and folder.name == "b":
    (folder / "benchmark.json").write_text(json.dumps({"results": "a part"}))
    time.sleep(60)
while folder.name == "b" and not (folder.parent / "c-prepared").exists():
    assert time.monotonic() < began + 60, "the next part has not started"
    time.sleep(0.01)
times = {"prepared": prepared, "began": began, "ended": time.monotonic()}
(folder / "benchmark.json").write_text(json.dumps(times))
print("said by", folder.name)
sys.exit(int(flags["code"]))
"""


def test_a_part_prepares_while_the_one_before_measures(tmp_path, monkeypatch, capsys):
    (tmp_path / "a_part.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(parts, "_LOOK", 0.02)
    every = {name: ["a_part", f"--code={code}"] for name, code in (("a", 0), ("b", 0), ("c", 3))}
    monkeypatch.setattr(parts, "commands", lambda small: every)

    folder, output = tmp_path / "small", tmp_path / "known.json"

    def run(minutes: float) -> tuple[dict, list[str]]:
        missing = parts.run_parts(["a", "b", "c"], folder, output, True, minutes)
        return json.loads(output.read_text()), missing

    # Time is up while b measures: what it has written is kept, and c waits in vain.
    folder.mkdir()
    (folder / "hangs").touch()
    found, missing = run(0.05)
    assert missing == ["b", "c"] and found["a"]["exit_code"] == 0
    assert found["b"]["benchmark"] == {"results": "a part"} and found["b"]["exit_code"] != 0
    (folder / "hangs").unlink()
    (folder / "c-prepared").unlink(missing_ok=True)
    capsys.readouterr()
    found, missing = run(1)
    assert missing == ["c"] and found["c"]["exit_code"] == 3
    b, c = (found[name]["benchmark"] for name in "bc")
    assert c["prepared"] < b["ended"] < c["began"]
    printed = capsys.readouterr().out
    assert "a: done before" in printed and "c: exit code 3\nsaid by c" in printed


def test_every_part_is_a_suite_and_a_shape_that_there_is():
    for small in (False, True):
        scale = session.SCALES["tiny" if small else "accelerator"]
        for name, (module, *flags) in parts.commands(small).items():
            given = dict(flag.removeprefix("--").split("=") for flag in flags if "=" in flag)
            assert (module == "pytest") == (name == "tests")
            assert set(given.get("suite", "sweep").split(",")) <= set(SUITES)
            assert given.get("encoder", "tiny") in checkpoints.SHAPES
            if "shapes" in given:
                assert given["shapes"] in [shape for shape, _, _ in scale.shapes]
    layers = checkpoints.SHAPES["qwen3-0.6b"]["num_hidden_layers"] + 1
    n_targets = len(rj.simulate(10).targets)
    assert layers * 2 * len(session.SCALES["accelerator"].sweep_dims) * n_targets == 2030


@pytest.mark.parametrize(
    ("name", "dtype", "apart", "agrees"),
    [("torch", "float32", 5e-4, True), ("torch", "float32", 1e-2, False),
     ("torch", "bfloat16", 1e-2, True), ("torch", "bfloat16", 0.2, False),
     ("torch", "float8", 0.2, True), ("routerjax in float8", "float32", 0.2, True),
     ("routerjax in float8", "bfloat16", 0.2, True),
     ("routerjax in float8", "bfloat16", 1.5, False)],
)  # fmt: skip
def test_states_may_differ_as_their_dtype_does(name, dtype, apart, agrees):
    ours = np.ones((3, 2, 2, 8), np.float32)
    if agrees:
        assert capture.agreement(name, dtype, ours, (1 + apart) * ours) < 1.01 * apart
    else:
        with pytest.raises(Disagreement, match=name):
            capture.agreement(name, dtype, ours, (1 + apart) * ours)


@pytest.mark.slow
def test_the_forward_suite_reads_full_rows_in_both_dtypes(still_machine, tmp_path):
    config = types.SimpleNamespace(
        workdir=tmp_path, scale="tiny", rounds=1, seed=0, encoder=None, compute_dtype="auto",
        shapes=["tiny"], n_queries=0, data=None,
    )  # fmt: skip
    s = session.Session(config)
    s.prepare(["forward"])
    found = SUITES["forward"](s)
    assert [row["contestant"] for row in found["rows"]] == [
        f"tiny in {dtype}: a batch of {n} tokens" for dtype in ("float32", "float8")
        for n in ("512", "1,024")
    ]  # fmt: skip
    flops = [row["flops"] for row in found["rows"]]
    assert flops[1] == 2 * flops[0] > 0 and flops[2:] == flops[:2]
    assert all(row["limit"] == "compute" and row["tokens_per_second"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_torch_at_its_best_reads_the_same_by_any_setting(tiny_encoder_folder, monkeypatch):
    pytest.importorskip("torch")
    peer = hugging_face.HuggingFace(str(tiny_encoder_folder), "float32", 64)
    texts = ["a" * n for n in (40, 3, 17, 9, 33, 12)]
    before = peer.best(texts)
    # The quickest is the one with the fewest rows.
    monkeypatch.setattr(peer, "_seconds", lambda setting, text: setting.rows)
    peer.tune(texts)
    assert peer.settings.keys() == {16, 32, 64}
    assert peer.settings[16].rows == 6 and peer.settings[64].rows == 4
    np.testing.assert_allclose(peer.best(texts), before, atol=1e-5)
    monkeypatch.undo()
    assert peer._seconds(peer.settings[16], texts[1]) > 0
