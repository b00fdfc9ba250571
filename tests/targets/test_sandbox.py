"""Programs that targets wrote: right, wrong, and past every limit."""

import asyncio
import pathlib
import socket
import tempfile
import time

import pytest

from routerjax.targets.sandbox import Sandbox

PYTHON = ("python3", "program")


def passes(code, tests="", **fields):
    async def run():
        sandbox = Sandbox(fields.pop("command", PYTHON), **fields)
        if not await sandbox.isolates():
            sandbox = Sandbox(sandbox.command, sandbox.time_s, sandbox.memory_mib, isolate=False)
        return await sandbox.passes(code, tests)

    return asyncio.run(run())


def test_code_is_found_in_the_answer_and_tested():
    answer = "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nUse it so:\n```\nf(1)\n```"
    assert passes(answer, "assert f(1) == 2")
    assert not passes(answer, "assert f(1) == 3")
    assert passes("raise SystemExit(0)")
    assert not passes("raise SystemExit(3)")


def test_it_starts_in_a_folder_of_its_own_without_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "x")
    assert passes(
        "import os\nassert sorted(os.listdir()) == ['answer', 'code', 'program']\n"
        "assert set(os.environ) <= {'PATH', 'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE'}, os.environ\n"
        "assert os.environ['HOME'] == os.getcwd()\nopen('mine', 'w').write('x')"
    )


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import mmap; mmap.mmap(-1, 1 << 30)",
        "print('x' * (2 << 20))",
        "open('big', 'wb').write(b'0' * (65 << 20))",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["loop", "sleep", "memory", "output", "file", "killed"],
)
def test_limits(code):
    start = time.monotonic()
    assert not passes(code, time_s=1.5, memory_mib=512)
    assert time.monotonic() - start < 6


def test_nothing_outlives_it(tmp_path):
    mark = tmp_path / "mark"
    tmp_path.chmod(0o777)
    # A grandchild in a session of its own, as which no signal to the group reaches it.
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
        f"    time.sleep(1)\n    open({str(mark)!r}, 'w')\n"
    )
    isolated = asyncio.run(Sandbox(PYTHON).isolates())
    if not isolated:
        pytest.skip("no namespaces on this machine")
    assert passes(code)
    time.sleep(1.2)
    assert not mark.exists()


def test_there_is_no_network():
    if not asyncio.run(Sandbox(PYTHON).isolates()):
        pytest.skip("the network cannot be cut off on this machine")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert not passes(connect)
        assert asyncio.run(Sandbox(PYTHON, isolate=False).passes(connect, ""))


def test_a_command_that_cannot_be_run_is_no_wrong_answer():
    # tmp_path lies in a folder of its user alone, and root's programs run as another one.
    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder) / "script"
        script.write_text("no header")
        for path in (script.parent, script):
            path.chmod(0o755)
        with pytest.raises(ValueError, match="cannot be run in the sandbox: .*Exec format"):
            passes("", command=(str(script),))
    with pytest.raises(ValueError, match="expected a command that is installed, got 'nothing x'"):
        Sandbox(("nothing", "x"))
