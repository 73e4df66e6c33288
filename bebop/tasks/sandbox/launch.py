"""Starting the sandbox's process from the outside, and what comes back."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bebop.errors import UserError
from bebop.tasks.sandbox.config import SandboxConfig
from bebop.tasks.sandbox.jail import frames
from bebop.tasks.sandbox.server import fork_server
from bebop.tasks.sandbox.view import python_view

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
    server, timeout_s = fork_server(os.getpid()), config.wall_s + GRACE_S
    start = time.monotonic()
    with _scratch(isolated) as directory:
        how = {"limits": config.limits(), "isolated": isolated, "view": python_view(), "directory": directory}
        messages = b"".join(frames.pack(message) for message in ({**job, **how}, *secrets))
        output = server.run(messages, timeout_s, isolated=isolated)
    return _result(output, time.monotonic() - start)


def _scratch(isolated: bool) -> AbstractContextManager[str]:
    """Where a job starts: a directory of its own, which isolated ones make themselves, in memory."""
    if isolated:
        return nullcontext("/")
    return tempfile.TemporaryDirectory(prefix="bebop-sandbox-", ignore_cleanup_errors=True)


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
