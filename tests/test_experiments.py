"""The scripts as a user runs them: each on its own, in a row, and wrongly."""

import dataclasses
import gc
import importlib.util
import io
import json
import logging
import os
import pathlib
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import types

import httpx
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.flags import FLAGS
from absl.testing import flagsaver

from experiments import compare, options
from routerjax.data.perturb import perturb
from routerjax.data.pool import write_pool
from routerjax.data.readers import read_dataset
from routerjax.data.simulated.simulate import simulate
from routerjax.data.writers import write_dataset
from routerjax.routing.limits import Limits
from routerjax.routing.router import Router
from routerjax.runtime import lock
from routerjax.runtime import script as script_module
from routerjax.runtime.files import Folder
from routerjax.store.store import ActivationStore
from routerjax.studies.contestants import BASELINES
from tests.http_servers import free_port, wait_for
from tests.report.test_verify import reader_of
from tests.runtime import bucket_server

ROOT = pathlib.Path(__file__).parents[1]


def start(script: str, *flags: str, text: bool = True) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{script}", *flags],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=text,
        env=os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")},
    )


def run(script: str, *flags: str, stdin: str | bytes = "") -> types.SimpleNamespace:
    """Runs a script as `python -m` does, in this process: what it imports is imported already."""
    # Flags of scripts that a test has imported make room for the same flags of this one.
    imported = {name: FLAGS[name] for name in FLAGS if _of_a_script(name)}
    for name in imported:
        delattr(FLAGS, name)
    before, ours = flagsaver.save_flag_values(FLAGS), logging.getLogger("routerjax")
    handlers, propagate, level = ours.handlers[:], ours.propagate, ours.level
    stdin = stdin if isinstance(stdin, bytes) else stdin.encode()
    with pytest.MonkeyPatch.context() as patch:
        # Imported by a test, it would be run a second time under a warning; what it imports in turn
        # would not define its flags again.
        for name in [name for name in sys.modules if name.startswith("experiments.")]:
            if name != "experiments.options":
                patch.delitem(sys.modules, name)
        patch.setattr(sys, "argv", [script, *flags])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "stderr", io.StringIO())
        # Both are for a process that ends with its script.
        patch.setattr(gc, "freeze", lambda: None)
        patch.setattr(script_module, "leave_out_torch", lambda: None)
        try:
            runpy.run_module(f"experiments.{script}", run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            flagsaver.restore_flag_values(before, FLAGS)  # The script's own flags are gone.
            for name, flag in imported.items():
                FLAGS[name] = flag
            ours.handlers[:], ours.propagate = handlers, propagate
            ours.setLevel(level)
        return types.SimpleNamespace(
            returncode=code, stdout=sys.stdout.getvalue(), stderr=sys.stderr.getvalue()
        )


def _of_a_script(name: str) -> bool:
    # A flag that was put back has no module.
    return FLAGS.find_module_defining_flag(name, "experiments.").startswith("experiments.")


def run_apart(script: str, *flags: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Runs a script in a process of its own, for what only that shows: exit code and imports."""
    job = start(script, *flags, text=False)
    out, err = job.communicate(stdin, timeout=300)
    return subprocess.CompletedProcess(job.args, job.returncode, out.decode(), err.decode())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """train.jsonl, test.jsonl and pool.json of a small simulated pool."""
    folder = tmp_path_factory.mktemp("files")
    test, train = simulate(600).split(0.25, seed=0)
    write_dataset(train, folder / "train.jsonl")
    write_dataset(test, folder / "test.jsonl.gz")
    write_pool(train, folder / "pool.json")
    return folder


def jobs_in(work, files, encoder):
    """extract, probe and train with their flags, one after the other."""
    common = [f"--workdir={work}", f"--data={files}/train.jsonl", f"--pool={files}/pool.json"]
    return [
        ("extract", *common, f"--encoder={encoder}", "--layers=1-3", "--mesh=data:1",
         '--chat_template_kwargs={"brief": true}', "--compute_dtype=bfloat16"),
        ("probe", *common, f"--store={work}/store"),
        ("train", *common, f"--store={work}/store", "--pca_dim=20", "--members=3", "--keep=2",
         "--epochs=5"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def work(files, tiny_encoder_folder, tmp_path_factory):
    """What `jobs_in` a folder leave."""
    work = tmp_path_factory.mktemp("work")
    for script, *flags in jobs_in(work, files, tiny_encoder_folder):
        done = run(script, *flags, *([] if script == "probe" else ["--track"]))
        assert done.returncode == 0, done.stderr
        if script == "extract":
            told = re.search(
                r"extract: .* s, \d+\.\d cores busy; "
                r"seconds waited for: (.*); seconds of work: (.*)", done.stderr,
            )  # fmt: skip
            waited, worked = ({each.split()[0] for each in told[i].split(", ")} for i in (1, 2))
            assert waited >= {"tokens", "device"} and waited.isdisjoint(worked)
            assert worked >= {"pack", "dispatch", "fetch", "digest", "write"}
        config = json.loads((work / "config.json").read_text())
        assert config["config"]["data"] == f"{files}/train.jsonl"
        assert config["versions"]["jax"] and config["devices"]
    return work


@pytest.fixture(params=["s3", "gs", "moto"])
def bucket(request, monkeypatch):
    """The URL of a bucket that fails at times; that of moto does not.

    $ROUTERJAX_MOTO is the Python of an environment with moto[server].
    """
    if request.param != "moto":
        with bucket_server.serve(request.param, monkeypatch) as server:
            rng, troubles = random.Random(0), ("busy", "broken", "dropped", "lost")
            server.trouble = lambda *_: rng.choice(troubles) if rng.random() < 0.1 else ""
            yield f"{request.param}://bucket"
        return
    python = os.environ.get("ROUTERJAX_MOTO")
    if not python:
        pytest.skip("no moto: name a Python that has it in $ROUTERJAX_MOTO")
    port = free_port()
    server = subprocess.Popen(
        [python, "-m", "moto.server", f"-p{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for name, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x",
                        "AWS_SECRET_ACCESS_KEY": "y"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        wait_for(f"{url}/moto-api/", server, 60)
        httpx.put(f"{url}/bucket").raise_for_status()
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_the_whole_job_in_a_bucket_leaves_what_it_leaves_on_disk(
    bucket, work, files, tiny_encoder_folder
):
    there, here = Folder(f"{bucket}/work"), Folder(work)
    extracts, *others = jobs_in(f"{bucket}/work", files, tiny_encoder_folder)
    assert run(*extracts).returncode == 0
    for name in ("blocks/0.json", "rows.json"):
        (there / "store").delete(name)
    for job in (extracts, *others):
        done = run(*job)
        assert done.returncode == 0, done.stderr
    store = [name for name in here.list("store/") if not name.startswith("store/events")]
    assert store and there.list("store/") == store
    for name in (*store, "probes.json", "probes.png"):
        assert there.read_bytes(name) == here.read_bytes(name), name
    routers = [folder.read_json("router/router.json") for folder in (there, here)]
    assert routers[0]["arrays_digest"] == routers[1]["arrays_digest"]
    done = run("route", f"--router={bucket}/work/router", "--query=abc def?")
    expected = run("route", f"--router={work}/router", "--query=abc def?")
    assert done.returncode == 0 and done.stdout == expected.stdout
    done = run("verify", f"--workdir={bucket}/work")
    assert done.returncode == 0, done.stdout


def test_extract_probe_and_train_leave_what_they_say(work):
    for name in (
        "store/store.json",
        "probes.json",
        "probes.png",
        "train.json",
        "router/router.json",
    ):
        assert (work / name).stat().st_size > 0, name
    assert len(list((work / "events/extract").iterdir())) == 1
    assert len(list((work / "events/train").iterdir())) == 1
    router = json.loads((work / "router/router.json").read_text())
    assert router["encoders"][0]["chat_template_kwargs"] == {"brief": True}
    assert router["features"]["parts"][0]["blocks"] == [[1, "mean"], [2, "mean"], [3, "mean"]]
    assert len(router["targets"]) == 7
    assert len(json.loads((work / "train.json").read_text())["history"]["kept"]) == 2


def test_verify_says_what_is_damaged(work, tmp_path):
    done = run("verify", f"--workdir={work}", f"--store={work}/store", f"--router={work}/router")
    assert done.returncode == 0 and done.stdout.endswith(" files, 0 problems\n"), done.stdout
    for file in work.rglob("*"):
        if file.is_file():
            reader_of(str(file.relative_to(work)))  # Fails where there is a new kind of file.
    shutil.copytree(work, tmp_path / "work")
    path = tmp_path / "work/router/router.json"
    path.write_text(path.read_text().replace('"argmax"', '"argmin"'))
    (tmp_path / "work/store/rows.json").unlink()
    done = run("verify", f"--workdir={tmp_path}/work")
    assert done.returncode == 1 and "error: 2 of " in done.stderr
    store, router, _ = done.stdout.splitlines()
    assert f"{path} is not as it was written" in router and "copy the file anew" in router
    assert "store/rows.json is missing" in store and "same extract command" in store


@pytest.mark.slow
def test_route_refuses_a_line_without_end(work):
    done = run("route", f"--router={work}/router", stdin=b"x" * (2**28 + 1))
    assert done.returncode == 1
    assert "error: standard input, line 1: 256 MiB or more: expected one query" in done.stderr


def test_evaluate_extracts_and_reports(work, files, tiny_encoder_folder, tmp_path):
    flags = [f"--data={files}/test.jsonl.gz", f"--pool={files}/pool.json", "--mesh=data:1",
             f"--router={work}/router", "--policy=tolerance:0.1"]  # fmt: skip
    done = run("evaluate", f"--workdir={tmp_path}", f"--encoder={tiny_encoder_folder}", *flags)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["cost_basis"] == "recorded"
    assert metrics["policy"] == {"name": "tolerance", "tau": 0.1}
    for key in ("n_queries", "targets", "auc", "mean_auc", "accuracy", "router_accuracy",
                "best_single", "best_single_accuracy", "oracle_accuracy", "headroom_captured",
                "cost_router", "cost_most_expensive", "cost_saving_vs_most_expensive",
                "zero_router_saving_at_equal_accuracy", "within_dataset_auc",
                "routed_share"):  # fmt: skip
        assert key in metrics
    report = " ".join((tmp_path / "report.html").read_text().split())
    assert "<html" in report and "computed in bfloat16. On 32 of these queries" in report
    assert "mean AUC" in done.stdout
    again = run("evaluate", f"--workdir={tmp_path}/again", f"--store={tmp_path}/store", *flags)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == metrics


@pytest.mark.slow
def test_decisions_on_perturbed_copies_are_counted(work, files, tiny_encoder_folder, tmp_path):
    few = read_dataset(files / "test.jsonl.gz", pool=files / "pool.json").select(range(40))
    write_dataset(few, tmp_path / "few.jsonl")
    flags = [f"--pool={files}/pool.json", f"--router={work}/router", "--perturb"]
    data, encoder = f"--data={tmp_path}/few.jsonl", f"--encoder={tiny_encoder_folder}"
    done = run("evaluate", f"--workdir={tmp_path}", encoder, data, *flags)
    assert done.returncode == 0, done.stderr
    assert "perturbed queries" in done.stdout
    assert "Do decisions stay?" in (tmp_path / "report.html").read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["robustness"]["politeness"]["n"] == 40
    assert metrics["robustness"]["all"]["n"] == len(perturb(few))
    store = f"--store={tmp_path}/perturbed_store"
    again = run("evaluate", f"--workdir={tmp_path}/again", store, data, *flags)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == metrics
    small = ["--pca_dim=5", "--members=1", "--keep=1", "--epochs=1", "--perturb"]
    pool = f"--pool={files}/pool.json"
    done = run("train", f"--workdir={tmp_path}/trained", store, data, pool, *small)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "trained/train.json").read_text())
    assert told["n_queries"] == 40 and 100 < told["n_copies"] < metrics["robustness"]["all"]["n"]
    lacks = run("evaluate", f"--workdir={tmp_path}/no", f"--store={work}/store",
                f"--data={files}/train.jsonl", *flags)  # fmt: skip
    assert lacks.returncode == 1 and "perturbed copies of these queries: extract" in lacks.stderr


def test_route_decides_for_a_flag_and_for_lines(work, tmp_path):
    one = run("route", f"--router={work}/router", "--query=What is 7 + 5?")
    assert one.returncode == 0, one.stderr
    decision = json.loads(one.stdout)
    assert decision["query"] == "What is 7 + 5?"
    assert decision["target"] in decision["probabilities"]
    assert set(decision["spreads"]) == set(decision["probabilities"])
    assert all(0 < spread < 0.5 for spread in decision["spreads"].values())
    many = run("route", f"--router={work}/router", "--policy=tolerance:1",
               f"--workdir={tmp_path}", "--seed=3",
               stdin="What is 7 + 5?\r\n\nSort 3, 1, 2.\n")  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["router"] == f"{work}/router" and config["versions"]["jax"]
    lines = [json.loads(line) for line in many.stdout.splitlines()]
    assert [line["query"] for line in lines] == ["What is 7 + 5?", "Sort 3, 1, 2."]
    assert {line["target"] for line in lines} == {"wren-1b"}


def test_route_reads_files_of_queries_and_keeps_ids(work, tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"global index": "mmlu_12", "query": "Which is prime?\\nA. 4\\nB. 7"}\n'
        '{"id": 3, "messages": [{"role": "system", "content": "Be brief."},'
        ' {"role": "user", "content": "What is 7 + 5?"}]}\n'
    )
    job = run("route", f"--router={work}/router", f"--queries={tmp_path}/x.jsonl",
              "--policy=tolerance:1", "--allowed=heron-70b,wren-1b")  # fmt: skip
    lines = [json.loads(line) for line in job.stdout.splitlines()]
    assert [line["id"] for line in lines] == ["mmlu_12", "3"]
    assert lines[0]["query"].count("\n") == 2
    assert {line["target"] for line in lines} <= {"heron-70b", "wren-1b"}


def test_drift_compares_a_log_with_the_training(work, files, tmp_path):
    flags = [f"--router={work}/router", f"--log={files}/test.jsonl.gz", f"--workdir={tmp_path}"]
    done = run("drift", *flags)
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "drift.json").read_text())
    assert done.stdout.startswith(f"{value['n_queries']:,} queries: ")
    assert ("no reason to train again" in done.stdout) == (not value["reasons"])
    assert len(value["targets"]) == 7
    again = run("drift", *flags, f"--store={work}/store", f"--data={files}/train.jsonl")
    assert json.loads((tmp_path / "drift.json").read_text()) == value, again.stderr


def test_export_writes_and_says_what_it_leaves_out(work, tmp_path):
    router = f"--router={work}/router"
    job = run("export", router, "--to=safetensors", f"--output={tmp_path}/x")
    assert job.returncode == 0, job.stderr
    assert json.loads((tmp_path / "x/model.json").read_text())["policy"] == {"name": "argmax"}
    # The router reads three layers in mean, with a variable of the template.
    job = run("export", router, "--to=switchyard", f"--output={tmp_path}/x.pt")
    assert job.returncode == 1 and not (tmp_path / "x.pt").exists()
    for reason in ("--recipe=averaged_layers:1+2+3", "- chat_template_kwargs: "):
        assert reason in job.stderr
    (tmp_path / "q.jsonl").write_text('{"global index": "a", "prompt": "What is 7 + 5?"}\n')
    job = run("export", router, "--to=router_arena", f"--output={tmp_path}", "--name=mine",
              f"--queries={tmp_path}/q.jsonl", "--policy=tolerance:1")  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert f"{tmp_path}/router_inference/config/mine.json" in job.stdout
    (row,) = json.loads((tmp_path / "router_inference/predictions/mine.json").read_text())
    assert row["prediction"] == "wren-1b"


def test_convert_writes_one_file_of_the_targets_that_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("id,query,a,b,c\n1,q?,1,0,1\n2,r?,0,,1\n")
    (tmp_path / "b.jsonl").write_text('{"id": "1", "correct": {"d": 0.5}}\n')
    job = run("convert", f"--data={tmp_path}/a.csv,{tmp_path}/b.jsonl", "--exclude_targets=c",
              f"--output={tmp_path}/out/x.jsonl")  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert "targets that are left out: 'c' (2 outcomes)" in job.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/x.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [
        {"a": 1, "b": 0, "d": 0.5}, {"a": 0, "b": None, "d": None}]  # fmt: skip


def test_route_answers_what_comes_before_a_faulty_line(work):
    lines = b"\xef\xbb\xbfone\n\ntwo\n\xff bad\n"
    job = run("route", f"--router={work}/router", stdin=lines)
    assert [json.loads(line)["query"] for line in job.stdout.splitlines()] == ["one", "two"]
    assert job.returncode == 1
    assert "error: standard input, line 4: not UTF-8" in job.stderr
    unfitted = run("route", "--router=nowhere", "--policy=budget:0.001", "--query=hi")
    assert unfitted.returncode == 1
    assert "train a router with this --policy" in unfitted.stderr


def test_route_answers_what_comes_before_a_query_that_no_target_can_take(work, tmp_path):
    router = Router.load(work / "router")
    n = len(router.targets)
    router.limits = Limits(np.full(n, 30.0), ((),) * n)
    router.save(tmp_path / "router")
    job = run("route", f"--router={tmp_path}/router", stdin=f"one\n{'word ' * 99}\ntwo\n")
    assert [json.loads(line)["query"] for line in job.stdout.splitlines()] == ["one"]
    assert job.returncode == 1 and "no target can take the query 'word word" in job.stderr


@pytest.mark.slow
def test_a_router_of_two_stores_with_a_layer_for_each_target(work, files, tiny_encoder_folder,
                                                             tmp_path):  # fmt: skip
    common = [f"--data={files}/train.jsonl", f"--pool={files}/pool.json"]
    done = run("extract", f"--workdir={tmp_path}", f"--encoder={tiny_encoder_folder}", *common,
               "--layers=0,3", "--max_tokens=30")  # fmt: skip
    assert done.returncode == 0, done.stderr
    stores = f"--store={work}/store,{tmp_path}/store"
    done = run("train", f"--workdir={tmp_path}", *common, stores, "--recipe=per_target:cv_auc",
               "--pooling=last,mean", "--pca_dim=20", "--members=2", "--epochs=2",
               "--calibration_folds=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    router = json.loads((tmp_path / "router/router.json").read_text())
    assert router["training"]["calibration_rows"] == "out of fold"
    assert (tmp_path / "checkpoints/calibration2/fold1/job.json").exists()
    choices = router["training"]["choices"]
    assert {choice["target"] for choice in choices} == set(router["targets"])
    for choice in choices:
        cell = {key: choice[key] for key in ("encoder", "layer", "pooling", "pca_dim")}
        assert cell in router["features"]["recipe"]["blocks"]
        assert f"per_target: {choice['target']} reads" in done.stderr
    flags = [f"--data={files}/test.jsonl.gz", f"--router={tmp_path}/router"]
    encoders = ",".join([str(tiny_encoder_folder)] * len(router["encoders"]))
    done = run("evaluate", f"--workdir={tmp_path}/test", *flags, f"--encoder={encoders}")
    assert done.returncode == 0, done.stderr
    done = run("route", flags[1], "--query=What is 7 + 5?", f"--encoder={encoders}")
    assert json.loads(done.stdout)["target"] in router["targets"], done.stderr
    done = run("route", flags[1], "--query=q", f"--encoder={encoders},more")
    assert done.returncode == 1 and "name one for each of them" in done.stderr


def test_all_baselines_are_those_that_the_rows_allow(capsys):
    data = simulate(30)
    assert list(compare.baselines(["all"], data)) == list(BASELINES)
    bare = dataclasses.replace(data, prices_M2=None, datasets=None)
    found = compare.baselines(["all"], bare)
    assert set(BASELINES) - set(found) == {"cheapest", "dataset"}
    said = capsys.readouterr().out
    assert "left out: cheapest: some or all prices are unknown" in said
    assert "left out: dataset: the rows do not name their datasets" in said
    # Asked for by name it is refused, by the comparison.
    assert list(compare.baselines(["knn", "cheapest"], bare)) == ["knn", "cheapest"]


@pytest.mark.slow
def test_compare_goes_on_where_it_stopped(work, files, tmp_path):
    flags = [f"--workdir={tmp_path}", f"--data={files}/train.jsonl", f"--store={work}/store",
             "--pca_dim=10", "--members=2", "--epochs=2", "--folds=2", "--draws=50"]  # fmt: skip
    done = run("compare", *flags, "--recipes=all_layers,greedy:2")
    assert done.returncode == 0, done.stderr
    before = json.loads((tmp_path / "compare.json").read_text())
    assert [row["name"] for row in before["contestants"]] == ["all_layers", "greedy:2"]
    assert len(before["contestants"][1]["choices"][0]["choices"]) == 2
    assert "mean_auc" in done.stdout and "difference" in done.stdout
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "compare").glob("*/*")}
    # Arrays and their JSON, of two folds: recipes, the same shuffled, and the dataset's name alone.
    assert len(times) == 2 * 2 * (2 + 2 + 1)
    done = run(
        "compare", *flags, "--recipes=all_layers,greedy:2,layers:3@last/5", "--baselines=knn"
    )
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "compare.json").read_text())
    assert len(after["contestants"]) == 4
    for row, same in zip(before["contestants"], after["contestants"], strict=False):
        assert same["choices"] == row["choices"] and same["control"] is not None
        assert same["mean_auc"]["value"] == pytest.approx(row["mean_auc"]["value"], abs=1e-6)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    done = run("compare", *flags, "--folds=3")
    assert done.returncode == 1 and "another comparison" in done.stderr


@pytest.mark.slow
def test_quickstart_is_their_sum(files, tiny_encoder_folder, tmp_path):
    flags = [f"--workdir={tmp_path}", f"--encoder={tiny_encoder_folder}", "--n_queries=500"]
    done = run("quickstart", *flags)
    assert done.returncode == 0, done.stderr
    for name in ("config.json", "store/store.json", "probes.json", "probes.png", "sweep.json",
                 "sweep.png", "evidence.png", "train.json",
                 "router/router.json", "metrics.json", "report.html"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0, name
    before = json.loads((tmp_path / "metrics.json").read_text())
    again = run("quickstart", *flags)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "metrics.json").read_text()) == before


def test_minilm_and_smollm2_are_found_in_their_wheels(minilm, monkeypatch):
    assert options.find_encoder(None) == options.find_encoder("minilm") == str(minilm)
    assert options.find_encoder("org/name") == "org/name"
    monkeypatch.setattr(options.rj.Encoder, "from_identity", lambda _, path, mesh: path)
    router = types.SimpleNamespace(encoder_identities=[{"encoder_id": "elsewhere"}])
    assert options.load_router_encoders(router, "minilm") == [str(minilm)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--encoder=smollm2 .* -r requirements-smollm2.txt"):
        options.find_encoder("smollm2")


def test_a_dry_run_tells_and_writes_nothing(files, tiny_encoder_folder, tmp_path):
    done = run("extract", f"--workdir={tmp_path}/none", f"--data={files}/train.jsonl",
               f"--encoder={tiny_encoder_folder}", "--dry_run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"bytes", "flops", "hours"} <= {line.split()[0] for line in done.stdout.splitlines()}
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_sigterm_ends_with_code_0_and_says_how_to_go_on(tiny_encoder_folder, tmp_path):
    write_dataset(simulate(30_000), tmp_path / "data.jsonl")
    flags = [f"--workdir={tmp_path}/work", f"--data={tmp_path}/data.jsonl", "--max_tokens=16",
             f"--encoder={tiny_encoder_folder}"]  # fmt: skip
    job = start("extract", *flags)
    blocks = tmp_path / "work/store/blocks"
    while job.poll() is None and not (blocks.is_dir() and any(blocks.iterdir())):
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "blocks to go" in err and "Run the same command again" in err
    n_before = len(list(blocks.iterdir()))
    assert n_before < 30
    done = run_apart("extract", *flags)  # On as many devices as the process before.
    assert done.returncode == 0, done.stderr
    assert len(list(blocks.iterdir())) == 30


ESTIMATE = ["--n_queries=9", "--tokens=9"]
LAUNCH = ["--for=slurm", "--devices=8"]
EXTRACT = ["experiments.extract", "--data=d", "--encoder=e", "--workdir=w"]


def test_estimate_needs_no_weights(tiny_encoder_folder):
    done = run("estimate", *ESTIMATE, f"--encoder={tiny_encoder_folder}", "--chips=8", "--price=2")
    assert done.returncode == 0, done.stderr
    told = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert float(told["dollars"]) == pytest.approx(float(told["hours"]) * 16, rel=1e-2)


def test_launch_writes_a_script_for_slurm(tmp_path):
    done = run("launch", *LAUNCH, f"--output={tmp_path}/job.sh", "--", *EXTRACT, "--layers=1-3")
    assert done.returncode == 0, done.stderr
    last = (tmp_path / "job.sh").read_text().splitlines()[-1]
    assert last == f"srun python -m {' '.join(EXTRACT)} --layers=1-3 --distributed"
    assert run("launch", *LAUNCH, "--", *EXTRACT).stdout.startswith("#!/bin/bash\n#SBATCH")


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("extract", ["--data=d", "--encoder=e"], "--workdir"),
        ("extract", ["--data={files}/none.jsonl", "--encoder=e"], "none.jsonl"),
        ("extract", ["--data={files}/train.jsonl", "--encoder=/no/such"], "no folder /no/such"),
        (
            "extract",
            ["--data=d", "--encoder=e", "--workdir=w", "--topology=v5e:2x2"],
            "--topology goes with --dry_run",
        ),
        ("probe", ["--data={files}/train.jsonl", "--store={files}/none"], "no activation store"),
        ("probe", ["--data={files}/train.jsonl", "--store=s", "--rank_by=J"], "ridge/standardised"),
        ("train", ["--data={files}/broken.jsonl", "--store=s"], "broken.jsonl:2: not valid JSON"),
        ("evaluate", ["--data={files}/train.jsonl", "--router=r"], "give --store, or --encoder"),
        ("route", ["--router={files}/none", "--query=q"], "holds no router"),
        ("verify", ["--store={files}/none"], "none/ is empty, or there is no such folder"),
        ("serve", ["--router={files}/none"], "holds no router"),
        ("drift", ["--router={files}/none", "--log=x"], "holds no router"),
        ("drift", ["--router=r", "--log=x", "--store=s"], "--store and --data: give both"),
        ("serve", ["--router=r", "--token_env=NOT_SET"], "the variable NOT_SET is not set"),
        ("estimate", [*ESTIMATE, "--encoder={files}"], "config.json: expected the config of a"),
        ("estimate", [*ESTIMATE, "--encoder=x.gguf"], "GGUF has no config.json"),
        ("launch", [*LAUNCH, "--", "experiments.train"], "expected -- experiments.extract and its"),
        ("launch", [*LAUNCH, "--", *EXTRACT, "--bla"], "extract: Unknown command line flag 'bla'"),
        ("launch", [*LAUNCH, "--", *EXTRACT, "--nodes=2"], "Unknown command line flag 'nodes'"),
        ("launch", [*LAUNCH, "--", *EXTRACT[:2]], "--encoder must have a value"),
        ("launch", [*LAUNCH, "--", *EXTRACT, "--distributed"], "leave out --distributed"),
        ("train", ["--data={files}/train.jsonl", "--store=s", "--recipe=greedy"], "greedy:K"),
        ("train", ["--data=d", "--store=s", "--calibration_folds=-1"], "non-negative"),
        ("compare", ["--data=d", "--store=s", "--recipes=best"], "got 'best'"),
        ("sweep", ["--data=d", "--store=s", "--seed=3000000000"], "[0, 2147483647]"),
        ("export", ["--router=r", "--to=onnx", "--output=o"], "should be one of"),
        ("export", ["--router={files}/none", "--to=stablehlo", "--output=o"], "holds no router"),
        ("export", ["--router=r", "--to=stablehlo", "--output=o", "--name=n"], "--name does not"),
        ("export", ["--router=r", "--to=router_arena", "--output=o"], "give --name and --queries"),
        ("collect", ["--data=d", "--targets={files}/none.json"], "none.json"),
        ("collect", ["--data=d", "--targets={files}/pool.json"], "targets[0]: base_url: Field"),
        ("collect", ["--data=d"], "--targets"),
        ("bench_gpu", ["--parts=tests,encoder"], "--parts: expected some of tests, qwen3-0.6b"),
        ("quickstart", ["--pcadim=3"], "Unknown command line flag 'pcadim'"),
        ("quickstart", ["--pool=pool.json"], "--pool is of the queries of --data: give both"),
        ("quickstart", ["--data=a.jsonl", "--n_queries=200"], "--n_queries is of simulated"),
        ("quickstart", ["--data="], "--data: expected a value, got none"),
        ("quickstart", ["--data=a.jsonl,"], "got an empty one in 'a.jsonl,'"),
        ("extract", ["--data=d", "--encoder="], "--encoder: expected a value, got none"),
        ("convert", ["--data=d", "--output=x.csv"], "expected a file to write JSON lines to"),
    ],
)
def test_mistakes_are_told_in_a_line(script, flags, message, files, tmp_path):
    first = (files / "train.jsonl").read_text().splitlines()[0]
    (files / "broken.jsonl").write_text(first + "\n{]\n")
    given = [flag.format(files=files) for flag in flags]
    if (
        script not in ("route", "serve", "drift", "launch", "estimate", "export", "convert")
        and message != "--workdir"
    ):
        given.append(f"--workdir={tmp_path}")
    done = run(script, *given)
    assert done.returncode == 1
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--store_dtype=float32", "--pca_dim=50"])
def test_probe_refuses_what_streaming_passes_over(flag, tmp_path):
    refused = run("probe", f"--workdir={tmp_path}/work", "--data=none.jsonl", "--stream",
                  "--encoder=none", flag)  # fmt: skip
    assert refused.returncode == 1 and f"error: {flag.partition('=')[0]} " in refused.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("evaluate", ["--data={files}/train.jsonl", "--store=s", "--workdir={at}"]),
        ("export", ["--to=safetensors", "--output={at}"]),
    ],
)
def test_a_second_job_is_refused_before_it_works(script, flags, files, tmp_path, monkeypatch):
    router = types.SimpleNamespace(encoder_identities=[{}])
    monkeypatch.setattr(Router, "load", lambda path: router)
    with lock.held(Folder(tmp_path)):
        done = run(script, "--router=r", *(flag.format(files=files, at=tmp_path) for flag in flags))
    assert done.returncode == 1 and "is in use (lock.json: " in done.stderr, done.stderr


@pytest.mark.slow
def test_training_stopped_by_sigterm_goes_on_to_the_same_router(work, files, tmp_path):
    flags = [f"--data={files}/train.jsonl", f"--store={work}/store", "--pca_dim=20",
             "--members=3", "--keep=2", "--epochs=40"]  # fmt: skip
    whole = run_apart("train", f"--workdir={tmp_path}/whole", *flags)
    assert whole.returncode == 0, whole.stderr
    job = start("train", f"--workdir={tmp_path}/cut", *flags)
    while job.poll() is None and not (tmp_path / "cut/checkpoints/job.json").exists():
        time.sleep(0.005)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    again = run_apart("train", f"--workdir={tmp_path}/cut", *flags)
    assert again.returncode == 0, again.stderr
    digests = [
        json.loads((tmp_path / name / "router/router.json").read_text())["arrays_digest"]
        for name in ("whole", "cut")
    ]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_shards_of_a_sweep_meet_in_a_folder(files, work, tmp_path):
    flags = [
        f"--workdir={tmp_path}", f"--data={files}/train.jsonl", f"--pool={files}/pool.json",
        f"--store={work}/store", "--pca_dims=5,10", "--folds=3", "--draws=20",
        "--controls=dataset,shuffled",
    ]  # fmt: skip
    first = run("sweep", *flags, "--shard=0/2")
    assert first.returncode == 0, first.stderr
    assert "still to come from other shards" in first.stderr
    assert not (tmp_path / "sweep.json").exists()
    second = run("sweep", *flags, "--shard=1/2")
    assert second.returncode == 0, second.stderr
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["layers"] == [1, 2, 3] and found["pca_dims"] == [5, 10]
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    assert found["targets"][0] in second.stdout and "control dataset" in second.stdout
    trunks = run("sweep", *flags, "--trunks=recipe=all_layers/8;hidden=16;dropout=0.2;seeds=2")
    assert trunks.returncode == 0, trunks.stderr
    settings = json.loads((tmp_path / "trunks.json").read_text())["settings"]
    assert len(settings) == 4 and "lr=0.001" in trunks.stdout
    other = run("sweep", *flags, "--seed=1")
    assert other.returncode == 1 and "seed: there 0, here 1" in other.stderr


@pytest.mark.slow
def test_random_weights_read_what_the_store_s_encoder_read(
    files, work, tiny_encoder_folder, tmp_path
):
    done = run("sweep", f"--workdir={tmp_path}", f"--data={files}/train.jsonl",
               f"--pool={files}/pool.json", f"--store={work}/store", "--pca_dims=5", "--folds=2",
               "--draws=0", "--controls=random_encoder",
               f"--encoder={tiny_encoder_folder}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "control random_encoder" in done.stdout
    store, other = (
        ActivationStore.open(path).identity for path in (work / "store", tmp_path / "random_store")
    )
    differing = {key for key in store | other if store.get(key) != other.get(key)}
    assert differing == {"weights_digest"}  # Prompts and dtypes are the store's.


@pytest.mark.parametrize(
    ("text", "message"),
    [("{brief: 1}", "is not JSON"), ("[1]", "expected a JSON object"), ("0", "")],
)
def test_settings_of_the_template_are_a_json_object(text, message):
    config = types.SimpleNamespace(encoder="/none", chat_template_kwargs=text)
    with pytest.raises(ValueError, match=f"--chat_template_kwargs: .*{message}"):
        options.load_encoder(config)


def test_the_flags_of_a_script_are_the_fields_of_its_config():
    @dataclasses.dataclass(frozen=True)
    class Config:
        router: str
        max_tokens: int
        size: float | None = options.flag(None, "A size.", 0, 1)
        kind: str = options.flag("near", "A kind.", "near", "far")
        names: list[str] = options.flag(["a"], "Names.")
        fast: bool = options.flag(False, "Fast.")

    required = [
        f"--{name}=x" for name in ("workdir", "data", "store")
    ]  # Of compare, imported above.
    with flagsaver.flagsaver():
        options.define(Config)
        own = ["--router=r", "--size=0.5", "--kind=far", "--names=b,c", "--fast"]
        absl_flags.FLAGS(["program", *required, *own])
        assert options.read(Config) == Config("r", 2048, 0.5, "far", ["b", "c"], True)
        with pytest.raises(absl_flags.IllegalFlagValueError, match="router"):
            absl_flags.FLAGS.router = None  # The annotation allows no None.
        for flag in ("--size=2.0", "--kind=other"):
            with pytest.raises(absl_flags.IllegalFlagValueError, match=flag[2:]):
                absl_flags.FLAGS(["program", *required, *own, flag])


def test_a_store_named_twice_is_refused():
    with pytest.raises(ValueError, match="--store: expected different stores, got a twice"):
        options.open_stores("a,b, a")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--shard=3", "--shard: expected i/n such as 0/8, got '3'"),
        ("--pca_dims=ten", "--pca_dims: expected numbers such as 50,200"),
        ("--controls=magic", "controls: expected some of shuffled"),
        ("--layers=9", "layers: the store holds [1, 2, 3], got 9"),
        ("--trunks=lr=fast", "--trunks: lr: 'fast' is not a number"),
        ("--trunks=default --shard=0/8", "--trunks trains in one process, got --shard=0/8"),
    ],
)
def test_a_wrong_flag_of_a_sweep_is_named(files, work, tmp_path, flag, message):
    done = run("sweep", f"--workdir={tmp_path}", f"--data={files}/train.jsonl",
               f"--pool={files}/pool.json", f"--store={work}/store", *flag.split())  # fmt: skip
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr
