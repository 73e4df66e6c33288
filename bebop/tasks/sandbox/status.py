"""Whether this machine can isolate: one run of a program that tries the doors."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

from bebop.tasks.sandbox.config import SandboxConfig
from bebop.tasks.sandbox.launch import CannotIsolate, launch

REMEDY = (
    "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0, or a container started with --security-opt seccomp=unconfined), "
    "or accept the risk with sandbox.allow_unisolated=true"
)
SELF_TEST = """
import os, socket
from pathlib import Path

def opened():
    yield "the host's files", lambda: Path("/etc/passwd").read_text()
    yield "the host's processes", lambda: Path("/proc/self/environ").read_text()
    yield "Python's own files, for writing", lambda: Path(os.__file__).open("a")
    yield "the network", lambda: socket.create_connection(("127.0.0.1", 9), timeout=0.1)
    yield "user namespaces", lambda: os.setuid(0)

for name, attempt in opened():
    try:
        attempt()
    except ConnectionRefusedError:
        print(name)
    except OSError:
        continue
    else:
        print(name)
if os.getppid() != 1:
    print("other processes")
if os.environ:
    print("the environment")
Path("scratch file").write_text("works")
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxStatus:
    """What ``bebop doctor`` says of the sandbox."""

    isolated: bool
    mechanism: str
    """How code is isolated here, in words; empty if it is not."""
    missing: str
    """What the machine does not allow, and the remedy; empty if it isolates."""


@functools.cache
def probe() -> SandboxStatus:
    """Try once, in a fraction of a second."""
    if not sys.platform.startswith("linux"):
        return _missing(f"namespaces exist on Linux alone, and this is {sys.platform}")
    try:
        result = launch(
            {"source": SELF_TEST, "function": None, "stdin": ""}, config=SandboxConfig(wall_s=20.0), isolated=True
        )
    except CannotIsolate as error:
        return _missing(str(error))
    if not result.ok:
        return _missing(f"the self-test ended with {result.reason}: {result.stderr.strip()[-300:]}")
    if result.stdout:
        return _missing("the self-test reached " + ", ".join(result.stdout.splitlines()))
    return SandboxStatus(
        isolated=True, mechanism="user, mount, PID, network and IPC namespaces with seccomp", missing=""
    )


def _missing(what: str) -> SandboxStatus:
    return SandboxStatus(isolated=False, mechanism="", missing=f"{what}; {REMEDY}")
