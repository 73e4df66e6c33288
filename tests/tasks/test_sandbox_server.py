"""The fork server: what becomes of its sandboxes when it, they or time itself end."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bebop.tasks.sandbox import SandboxConfig
from bebop.tasks.sandbox.jail import frames
from bebop.tasks.sandbox.server import ForkServer


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def server() -> Iterator[ForkServer]:
    one = ForkServer()
    yield one
    one.close()


def job(source: str) -> bytes:
    """An unisolated one, in a directory of its own, as ``launch`` gives it: it keeps its standard input there."""
    directory = tempfile.mkdtemp(dir=os.environ["TMPDIR"])
    message = {"source": source, "function": None, "stdin": "", "isolated": False, "directory": directory}
    return frames.pack({**message, "limits": SandboxConfig(wall_s=60).limits()})


def printed(report: bytes | None) -> str:
    assert report
    return str(frames.unpack(report)["stdout"])


def pid_of(server: ForkServer) -> int:
    assert server._process is not None
    return server._process.pid


def test_sandboxes_share_a_server_and_nothing_else(server: ForkServer) -> None:
    assert printed(server.run(job("import builtins; builtins.leak = 1; print('one')"), 60)) == "one\n"
    first = pid_of(server)
    assert printed(server.run(job("import builtins; print(hasattr(builtins, 'leak'))"), 60)) == "False\n"
    assert pid_of(server) == first


def test_threads_get_the_reports_of_their_own_sandboxes(server: ForkServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda i: printed(server.run(job(f"print({i})"), 60)), range(12)))
    assert reports == [f"{i}\n" for i in range(12)]


def test_a_killed_server_is_replaced(server: ForkServer) -> None:
    server.run(job(""), 60)
    first = pid_of(server)
    os.kill(first, signal.SIGKILL)
    assert printed(server.run(job("print('again')"), 60)) == "again\n"
    assert pid_of(server) != first


def test_a_sandbox_that_does_not_end_in_time_is_killed(server: ForkServer) -> None:
    started = time.monotonic()
    assert server.run(job("import time; time.sleep(1000)"), 1.0) is None
    assert time.monotonic() - started < 30
    assert printed(server.run(job("print('next')"), 60)) == "next\n"


def test_a_sandbox_whose_processes_are_all_killed_has_no_report(server: ForkServer) -> None:
    assert server.run(job("import os; os.killpg(0, 9)"), 60) == b""


def test_a_closed_server_ends(server: ForkServer) -> None:
    server.run(job(""), 60)
    process = server._process
    server.close()
    assert process is not None and process.returncode == 0
