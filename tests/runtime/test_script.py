"""What every job needs: a polite stop, its description on disk, errors in one line."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import types

import jax
import pytest

from routerjax.runtime import lock, provenance, resume, script
from routerjax.runtime.files import Folder


@dataclasses.dataclass(frozen=True)
class Config:
    """A config like those of the scripts."""

    seed: int = 3
    layers: tuple[int, ...] = (1, 2)
    rate: float = float("nan")


# ---- SIGTERM


def test_sigterm_asks_to_stop_within_and_kills_again_after():
    before = signal.getsignal(signal.SIGTERM)
    with resume.stoppable():
        assert not resume.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert resume.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)  # Schedulers repeat themselves.
        assert resume.stop_requested()
    assert not resume.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_does_not_outlive_a_job_that_failed():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="broke"), resume.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("broke")
    assert signal.getsignal(signal.SIGTERM) is before
    with resume.stoppable():
        assert not resume.stop_requested()


@pytest.mark.parametrize(
    ("seconds", "again", "ends"), [(0.05, [], [130]), (60, ["user"], [130]), (60, ["dropped"], [])]
)
def test_an_interrupt_ends_deaf_code_in_time_and_a_second_one_at_once(
    monkeypatch, seconds, again, ends
):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with resume.stoppable(seconds, exit_code=3):
            for cause in ["user", *again]:
                with pytest.raises(KeyboardInterrupt):
                    if cause == "dropped":
                        resume.interrupt_again()
                    else:
                        os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(5)
            time.sleep(0.3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ends


# ---- a script's main, in a process of its own

# One process imports what they need, and the scripts are its forks. On its standard input: of each
# the folder of its cache, and sys.argv.
SCRIPTS = """
import asyncio, atexit, hashlib, json, os, resource, signal, sys, threading
from routerjax.runtime import files, lock, resume, script

script.ENDS_WITHIN = 1.0
closed = asyncio.new_event_loop()
closed.close()

def main():
    kind = sys.argv[0]
    lock.keep(files.Folder(os.environ["XDG_CACHE_HOME"]))
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGTERM)
        assert resume.stop_requested()
        raise resume.Stopped("Stopped with 2 of 9 blocks to go.")
    if kind == "stopped early":
        raise resume.Stopped("Stopped.", goes_on=False)
    if kind == "read no more":
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(reading)
        print("a line", flush=True)
    if kind == "interrupted twice":
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
    if kind == "interrupted in a callback":
        type("Last", (), {"__del__": lambda self: os.kill(os.getpid(), signal.SIGINT)})()
        threading.Event().wait(20)
    if kind.startswith("interrupted"):
        os.kill(os.getpid(), signal.SIGINT)
    if kind == "deaf":
        # In compiled code, for minutes: Python runs no signal handler meanwhile.
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    if kind == "hanging":
        threading.Thread(target=threading.Event().wait).start()
        raise RuntimeError("a library's thread waits for ever")
    if kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        files.Folder(os.environ["XDG_CACHE_HOME"]).write_bytes("x", bytes(99))
    if kind == "wrong":
        type("Write", (), {"__del__": lambda self: closed.run_forever()})()
        raise ValueError("labels.jsonl:3: not valid JSON")
    if kind == "broken":
        raise KeyError("a fault of ours")

begun = []
for folder, argv in json.load(sys.stdin):
    reading, writing = os.pipe()
    if not (process := os.fork()):
        break
    os.close(writing)
    begun.append((process, open(reading)))
else:
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process, _ in begun]
    print(json.dumps([(code, told.read()) for code, (_, told) in zip(codes, begun)]))
    sys.exit()
os.environ["XDG_CACHE_HOME"], sys.argv = folder, argv
for number in (1, 2):
    os.dup2(writing, number)
script.run_script(main, stops_within=1.0)
"""

ENDS = {
    "fine": (["fine"], 0, "", False),
    "stopped": (
        ["stopped"], 0, "blocks to go. Run the same command again: it goes on from there.", False,
    ),
    "in compiled code": (
        ["deaf", "--stopped_exit_code=75"], 75,
        "what was in hand took too long and is not. Run the same command", False,
    ),
    "stopped early": (
        ["stopped early", "--stopped_exit_code=3"], 3,
        "Run the same command again: this part starts anew.", False,
    ),
    "read no more": (["read no more"], 141, "", False),
    "interrupted": (["interrupted"], 130, "interrupted: what was finished is kept", False),
    "interrupted twice": (
        ["interrupted twice"], -2, "interrupted: what was finished is kept", False,
    ),
    "interrupted in a callback": (
        ["interrupted in a callback"], 130, "interrupted: what was finished is kept", False,
    ),
    "user's error": (["wrong"], 1, "error: labels.jsonl:3: not valid JSON\n", False),
    "full disk": (
        ["full"], 1, "]. Nothing that was finished is lost: make room (disk, quota, ulim", False,
    ),
    "a thread that never ends": (
        ["hanging"], 1, "error: a library's thread waits for ever\n", False,
    ),
    "verbose": (["wrong", "--v=1"], 1, "ValueError: labels.jsonl:3", True),
    "our fault": (["broken"], 1, "KeyError: 'a fault of ours'", True),
    "no flag": (["fine", "data.jsonl"], 1, "unexpected arguments ['data.jsonl']", False),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{script: its folder, its exit code, what it said}."""
    folders = [str(tmp_path_factory.mktemp("script")) for _ in ENDS]
    given = zip(folders, (arguments for arguments, *_ in ENDS.values()), strict=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS], input=json.dumps([*given]), check=True, text=True,
        stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    rows = zip(folders, json.loads(done.stdout), strict=True)
    return dict(zip(ENDS, ((folder, *ends) for folder, ends in rows), strict=True))


@pytest.mark.parametrize("name", ENDS)
def test_how_a_script_ends(ended, name):
    _, code, text, traceback = ENDS[name]
    folder, ended_with, said = ended[name]
    assert ended_with == code, said
    assert text in said and ("Traceback" in said) == traceback, said
    assert not (pathlib.Path(folder) / "lock.json").exists()


@pytest.mark.parametrize(
    ("number", "flags", "code", "text"),
    [
        ("SIGTERM", [], 0, "Stopped: what was finished is kept. Run the same command again.\n"),
        ("SIGTERM", ["--stopped_exit_code=75"], 75, "Stopped: what was finished is kept. Run"),
        ("SIGINT", [], 130, "interrupted: what was finished is kept\n"),
    ],
)
def test_a_signal_ends_a_script_that_is_still_importing(tmp_path, number, flags, code, text):
    (tmp_path / "jax.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{number})\n")
    ended = _verify(tmp_path, *flags)
    assert ended.returncode == code and ended.stderr.startswith(text), ended.stderr


def test_a_closed_stream_s_number_is_no_other_file_s(tmp_path):
    (tmp_path / "jax.py").write_text(
        "import os, pathlib\n"
        f"with open({str(tmp_path / 'opened')!r}, 'w') as file:\n"
        "    file.write(f'{file.fileno()}')\n"
        "os._exit(7)\n"
    )
    ended = _verify(tmp_path, shell=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    assert ended.returncode == 7 and int((tmp_path / "opened").read_text()) > 2


def _verify(folder, *flags, shell=()):
    """Runs experiments.verify with the modules in a folder before all others."""
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [*shell, sys.executable, "-m", "experiments.verify", *flags],
        text=True,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_a_user_without_a_home_has_no_cache_of_programs(monkeypatch):
    set_to = {}
    config = types.SimpleNamespace(jax_compilation_cache_dir=None, update=set_to.__setitem__)
    monkeypatch.setattr(script, "jax", types.SimpleNamespace(config=config))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # As where there is none.
    script.use_compilation_cache()
    assert "jax_compilation_cache_dir" not in set_to
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", "/home/a"))
    script.use_compilation_cache()
    assert set_to["jax_compilation_cache_dir"] == "/home/a/.cache/routerjax/xla"


USES_TRANSFORMERS = """
from routerjax.runtime import resume, script

def main():
    from transformers import AutoConfig, AutoTokenizer

script.run_script(main, torch={torch})
"""


@pytest.mark.parametrize("torch", [False, True])
def test_a_script_imports_torch_only_where_it_uses_it(tmp_path, torch):
    # An installed torch of which one sees that it is imported.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "torch-2.99.dist-info").mkdir()
    (tmp_path / "torch-2.99.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.99\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", USES_TRANSFORMERS.format(torch=torch)],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path},
    )
    assert ("torch was imported" in ended.stderr) == torch, ended.stderr
    assert ended.returncode == int(torch), ended.stderr
    assert torch or not ended.stderr


# ---- config.json


def test_config_json_has_all_that_decides_the_numbers(tmp_path):
    provenance.write_config(tmp_path, Config())
    lock.release_kept()
    found = json.loads((tmp_path / "config.json").read_text())
    assert set(found) == {"config", "versions", "git_revision", "devices", "processes"}
    assert found["config"] == {"seed": 3, "layers": [1, 2], "rate": None}
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["python"] == sys.version.split()[0]
    assert {"routerjax", "numpy", "tensorstore"} <= set(found["versions"])
    assert found["devices"] == ["8 x cpu"] and found["processes"] == 1


def test_a_workdir_is_one_script_s_until_it_ends(tmp_path):
    provenance.write_config(tmp_path, Config())
    provenance.write_config(tmp_path, Config(seed=4))
    other = [sys.executable, "-c", TAKES, str(tmp_path)]
    refused = subprocess.run(other, capture_output=True, text=True)
    assert refused.returncode == 1
    assert f"error: {tmp_path}/ is in use (lock.json: " in refused.stderr
    assert f"process {os.getpid()} on" in refused.stderr and "Traceback" not in refused.stderr
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seed"] == 4
    lock.release_kept()
    with lock.held(Folder(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("error", "to_do"),
    [
        (OSError("cannot write a/b: DATA_LOSS: [os_error_code='28']"), "make room"),
        (OSError("cannot write a/b: x [os_error_code='122']"), "make room"),
        (OSError("cannot write the arrays in a/: [Errno 28] No space left on device"), "make room"),
        (OSError("cannot write a/b: x [os_error_code='13']"), "This user cannot write there"),
        (OSError("cannot write a/b: x [os_error_code='30']"), "This user cannot write there"),
        (OSError("cannot write a/b: x [os_error_code='20']"), ""),
        (OSError("cannot read a/b: x [os_error_code='13']"), ""),
        (ValueError("cannot write"), ""),
    ],
)
def test_what_to_do_where_a_file_cannot_be_written(error, to_do):
    text = script._what_to_do(error)
    assert text.startswith(". ") and to_do in text if to_do else text == ""


def test_a_folder_that_may_only_be_read_is_told_in_a_line():
    with tempfile.TemporaryDirectory() as folder:
        # Root may write anywhere, and is another user in the script.
        pathlib.Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", TAKES, folder], text=True, capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"error: cannot write {folder}/lock.json" in done.stderr
    assert "This user cannot write there: use another folder" in done.stderr


TAKES = """
import dataclasses, os, stat, sys
import jax
from routerjax.runtime import provenance, script

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 5

path = sys.argv.pop()

def main():
    if not stat.S_IMODE(os.stat(path).st_mode) & stat.S_IWUSR and os.getuid() == 0:
        jax.devices()
        os.setuid(65534)
    provenance.write_config(path, Config())

script.run_script(main)
"""


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert set(provenance.describe_run(Config())["versions"]) == {"python"}


def test_the_git_revision_marks_changed_files_and_may_be_missing(monkeypatch):
    def answers(head, status, code=0, of_listing=0):
        def run(command, **_):
            text = head if "rev-parse" in command else status
            given = of_listing if "ls-files" in command else code
            return subprocess.CompletedProcess(command, given, text, "")

        monkeypatch.setattr(subprocess, "run", run)
        return provenance.describe_run(Config())["git_revision"]

    assert answers("abc123\n", "") == "abc123"
    assert answers("abc123\n", " M file.py\n") == "abc123+"
    assert answers("", "", code=128) is None
    # Installed into a folder of another repository, whose commit says nothing.
    assert answers("abc123\n", "", of_listing=1) is None

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert provenance.describe_run(Config())["git_revision"] is None


# ---- compilation cache and progress


@pytest.fixture
def cache_options():
    """Puts JAX's cache options back as they were."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("given", "cuda", "left"),
    [
        ("", True, "--xla_gpu_enable_triton_gemm=false"),
        ("--xla_a=1", True, "--xla_a=1 --xla_gpu_enable_triton_gemm=false"),
        ("--xla_gpu_enable_triton_gemm=true", True, "--xla_gpu_enable_triton_gemm=true"),
        ("--xla_a=1", False, "--xla_a=1"),
        ("/etc/xla_flags", True, "/etc/xla_flags"),
    ],
)
def test_products_are_cublas_on_a_gpu_unless_the_user_says_otherwise(
    given, cuda, left, monkeypatch, tmp_path
):
    (tmp_path / "jax_plugins" / ("xla_cuda99" if cuda else "xla_other")).mkdir(parents=True)
    (tmp_path / "jax_plugins" / ("xla_cuda99" if cuda else "xla_other") / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jax_plugins", raising=False)
    monkeypatch.setenv("XLA_FLAGS", given)
    script.use_cublas()
    assert os.environ["XLA_FLAGS"] == left


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_the_compilation_cache_holds_small_programs_too(
    cache_options, monkeypatch, tmp_path, chosen
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = None if chosen is None else str(tmp_path / chosen)
    jax.config.update("jax_compilation_cache_dir", own)
    script.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == (own or str(tmp_path / "routerjax/xla"))
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_the_progress_bar_counts_from_what_is_done(capsys):
    with resume.progress_bar(total=10, done=4, unit="queries", what="extract") as bar:
        bar.update(6)
        assert (bar.n, bar.total) == (10, 10)
    said = capsys.readouterr().err
    assert "extract" in said and "queries" in said and "10/10" in said
