"""Starting a role in a child process under its limits, and reading how it ended."""

import os
import resource
import signal
import sys

from . import roles

NUM_OPEN_FILES = 64
OVERHEAD_PROCESSES = 3
"""The sandbox's own processes, which count against RLIMIT_NPROC."""
REASONS_BY_EXIT = {
    0: "ok",
    roles.EXIT_MEMORY: "memory limit",
    roles.EXIT_STORAGE: "output limit",
    roles.EXIT_PROCESSES: "process limit",
}


def spawn(role, files: dict[int, int], limits: dict, isolated: bool) -> int:
    """Fork a child whose descriptors are ``files`` (its number: ours) alone, and which runs ``role()``; its pid."""
    pid = os.fork()
    if pid:
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _keep_only(files)
    _scrub()
    _limit(limits, isolated)
    role()
    sys.exit(0)


def reason_of(status: int, cpu_s: float, limits: dict) -> str:
    """Why a process with this wait status and this CPU time ended."""
    if not os.WIFSIGNALED(status):
        return REASONS_BY_EXIT.get(os.WEXITSTATUS(status), "wrong exit")
    by_cpu = os.WTERMSIG(status) == signal.SIGXCPU or cpu_s >= limits["cpu_s"]
    return "cpu limit" if by_cpu else "killed"


def _keep_only(files: dict[int, int]) -> None:
    # Through high numbers first, so that no target overwrites a source that is still to be copied.
    high = {target: os.dup2(source, 200 + target) for target, source in files.items()}
    for target, source in high.items():
        os.dup2(source, target)
    os.closerange(max(files) + 1, 256)


def _scrub() -> None:
    """Take away what tells where Bebop lives, and the LC_CTYPE that Python itself put into the empty environment."""
    os.environ.clear()
    sys.argv[:] = ["solution.py"]
    sys.orig_argv[:] = []


def _limit(limits: dict, isolated: bool) -> None:
    """Apply the resource limits; none can be raised again."""
    cpu_s = limits["cpu_s"]
    exact = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_NOFILE: NUM_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if isolated:  # otherwise it would count every process of the user
        exact[resource.RLIMIT_NPROC] = limits["max_processes"] + OVERHEAD_PROCESSES
    for name, limit in exact.items():
        resource.setrlimit(name, (limit, limit))
    # The first second is told by a signal that can be caught, the next by one that cannot.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
