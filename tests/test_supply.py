"""What is installed is what requirements.lock says, and no import asks the network for anything."""

import configparser
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "experiments").glob("*.py") if "run_script(" in path.read_text()
)


def read(text: str) -> dict[str, list[Requirement]]:
    """The requirements of a file by name, without their hashes."""
    found: dict[str, list[Requirement]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line := line.partition("#")[0].partition(" --hash")[0].strip():
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


@pytest.fixture(scope="module")
def lock() -> dict[str, list[Requirement]]:
    return read((ROOT / "requirements.lock").read_text())


def version(lock, name: str, environment: dict[str, str]) -> str | None:
    """Which version of a package the lock installs; None for none."""
    versions = [
        str(each.specifier).removeprefix("==")
        for each in lock.get(canonicalize_name(name), ())
        if each.marker is None or each.marker.evaluate(environment)
    ]
    assert len(versions) <= 1, (name, versions)
    return versions[0] if versions else None


def missing(lock, wanted: list[str], environment: dict[str, str]) -> list[str]:
    """Those of some requirements that the lock does not fulfil."""
    result = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            held = version(lock, requirement.name, environment)
            if held is None or not requirement.specifier.contains(held, prereleases=True):
                result.append(f"{requirement}: the lock has {held}")
    return result


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_is_that_of_setup_cfg_and_constraints(lock, python):
    """Where this fails, run `make lock`."""
    environment = default_environment() | {
        "python_version": python, "python_full_version": f"{python}.0", "extra": "",
    }  # fmt: skip
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = re.findall(r"--extra=(\w+)", (ROOT / "Makefile").read_text())
    wanted = config["options"]["install_requires"].split("\n")
    for extra in extras:
        wanted += config["options.extras_require"][extra].split("\n")
    wanted = list(filter(None, wanted))
    assert len(extras) == 3 and len(wanted) > 30
    assert missing(lock, wanted, environment) == []

    pins = read((ROOT / "constraints.txt").read_text())
    assert {canonicalize_name(Requirement(each).name) for each in wanted} <= pins.keys()
    for name, (pin,) in pins.items():
        held = version(lock, name, environment)
        assert held is None or pin.specifier.contains(held), f"{pin}: the lock has {held}"


def test_what_the_lock_lacks_is_seen(lock):
    environment = default_environment() | {"extra": ""}
    assert missing(lock, ["jax>=99", "nosuch", "numpy"], environment) == [
        f"jax>=99: the lock has {version(lock, 'jax', environment)}", "nosuch: the lock has None",
    ]  # fmt: skip


def test_all_that_is_locked_has_a_version_and_hashes(lock):
    text = (ROOT / "requirements.lock").read_text()
    assert len(lock) > 60 and "://" not in text
    for requirements in lock.values():
        for each in requirements:
            assert re.fullmatch(r"==[^,*]+", str(each.specifier)), each
    for block in re.split(r"\n(?=\S)", text):
        if not block.startswith("#"):
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


def test_what_locked_packages_need_is_locked(lock):
    """Of those installed here at the version of the lock."""
    environment, seen = default_environment() | {"extra": ""}, 0
    for name in lock:
        try:
            held = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # Of another platform.
        if held.version == version(lock, name, environment):
            seen += 1
            assert missing(lock, held.requires or [], environment) == [], name
    assert seen > 40


# An event is seen wherever Python code asks for it, and whatever is caught afterwards.
REFUSES = """
import os, runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(2, f"asks the network: {event} {arguments}".encode())
        os._exit(3)
sys.addaudithook(refuse)
"""
IMPORTS = """
import routerjax
for name in routerjax.__all__:
    getattr(routerjax, name)
"""
HELP = """
import json, experiments.options
codes = {}
for script in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.argv = [script, "--help"]
        sys.stdout.flush()
        runpy.run_module(f"experiments.{script}", run_name="__main__")
    codes[script] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def without_network(code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", REFUSES + code, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_no_import_asks_the_network():
    done = without_network(IMPORTS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_no_script_asks_the_network_for_its_help():
    done = without_network(HELP, *SCRIPTS)
    assert len(SCRIPTS) > 20 and done.returncode == 0, done.stderr
    # What absl ends its help with.
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(SCRIPTS, 1), done.stderr


def test_asking_the_network_is_seen():
    code = "import urllib.request\ntry: urllib.request.urlopen('http://localhost:9')\nexcept: pass"
    done = without_network(code)
    assert done.returncode == 3 and "asks the network: socket." in done.stderr
