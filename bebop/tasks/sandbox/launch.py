"""Starting the sandbox's process from the outside, and what comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bebop.errors import UserError
from bebop.tasks.sandbox.config import SandboxConfig
from bebop.tasks.sandbox.jail import frames
from bebop.tasks.sandbox.view import python_view

HERE = Path(__file__).resolve().parent
BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from jail.main import main; del sys.path[0]; main()"
# A bare interpreter: no environment, no user or site packages, UTF-8.
FLAGS = ("-I", "-S", "-X", "utf8", "-c", BOOTSTRAP, str(HERE))
GRACE_S = 5.0
"""How much longer than its wall time the sandbox may take to report before it is killed from outside."""


class Ending(StrEnum):
    """Why a run ended."""

    OK = "ok"
    WRONG_EXIT = "wrong exit"
    """An uncaught exception, or an exit status other than 0."""
    TIMEOUT = "timeout"
    CPU_LIMIT = "cpu limit"
    MEMORY_LIMIT = "memory limit"
    PROCESS_LIMIT = "process limit"
    OUTPUT_LIMIT = "output limit"
    """Too much printed, returned or written."""
    KILLED = "killed"
    """A signal: a crash of the interpreter, or the machine out of memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxResult:
    """What one run left behind. Nothing in it was decided by the code that ran, save the texts."""

    reason: Ending
    stdout: str
    """At most ``output_kb``; bytes that are not UTF-8 replaced."""
    stderr: str
    wall_s: float
    replies: str = ""
    """Lines of ``jail.roles.answer_calls``: written by model code, to be parsed with suspicion."""

    @property
    def ok(self) -> bool:
        return self.reason is Ending.OK


class CannotIsolate(UserError):
    """The machine does not allow a step of the isolation; ``args[0]`` says which."""


def launch(
    job: Mapping[str, Any], *, config: SandboxConfig, isolated: bool, secrets: Sequence[Any] = ()
) -> SandboxResult:
    """Run one job, isolated or not, and wait for its end."""
    complete = {**job, "limits": config.limits(), "isolated": isolated, "view": python_view()}
    messages = b"".join(frames.pack(message) for message in (complete, *secrets))
    start = time.monotonic()
    if isolated:
        output = _communicate(messages, "/", config.wall_s + GRACE_S)
    else:
        with tempfile.TemporaryDirectory(prefix="bebop-sandbox-", ignore_cleanup_errors=True) as scratch:
            output = _communicate(messages, scratch, config.wall_s + GRACE_S)
    return _result(output, time.monotonic() - start)


def _communicate(messages: bytes, directory: str, timeout_s: float) -> bytes | None:
    """The report's bytes; none if the process did not stop by itself and was killed."""
    process = subprocess.Popen(
        [os.path.realpath(sys.executable), *FLAGS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=directory,
        env={},
        start_new_session=True,
    )
    try:
        return process.communicate(messages, timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None


def _result(output: bytes | None, wall_s: float) -> SandboxResult:
    if not output:
        reason = Ending.TIMEOUT if output is None else Ending.KILLED
        return SandboxResult(reason=reason, stdout="", stderr="", wall_s=wall_s)
    report = frames.unpack(output)
    if "cannot" in report:
        raise CannotIsolate(f"the sandbox could not be set up ({report['cannot']})")
    return SandboxResult(
        reason=Ending(report["reason"]),
        stdout=report["stdout"],
        stderr=report["stderr"],
        replies=report["replies"],
        wall_s=wall_s,
    )
