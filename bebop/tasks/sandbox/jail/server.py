"""The fork server: an interpreter with everything imported, whose forks become sandboxes.

Starting an interpreter and importing takes most of a short program's time. This process runs no foreign code and is
told nothing of the jobs: a fork has a session of its own, and namespaces where it is to be isolated, before it reads
its job.

One request of eight bytes at a time on descriptor 0. With a descriptor it asks for a fork that has it as descriptors 0
and 1, isolated if the number is 1, and is answered with the fork's pid; else it is a pid, and asks for an end of that
fork and of its session.
"""

import contextlib
import os
import signal
import socket

from . import namespaces, roles

WORD_BYTES = 8
CONTROL_FD = 0
PLAIN, ISOLATED = range(2)


def serve() -> OSError | None:
    """Return in the forks alone: what the machine does not allow of the isolation that was asked for, if anything."""
    roles.warm_up()
    control = socket.socket(fileno=CONTROL_FD)
    alive: set[int] = set()
    while True:
        word, received, _, _ = socket.recv_fds(control, WORD_BYTES, 1)
        _forget_ended(alive)
        if not word:  # the owner has gone
            os._exit(0)
        if received:
            pid, refusal = _fork(isolated=int.from_bytes(word, "big") == ISOLATED)
            if pid == 0:
                os.setsid()
                control.detach()
                _become(received[0])
                return refusal
            os.close(received[0])
            alive.add(pid)
            control.sendall(pid.to_bytes(WORD_BYTES, "big"))
        elif (pid := int.from_bytes(word, "big")) in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _fork(*, isolated: bool) -> tuple[int, OSError | None]:
    """The pid, or in the fork 0 and what was refused; where namespaces are, it is without them and can say so."""
    if not isolated:
        return os.fork(), None
    try:
        return namespaces.fork()
    except OSError as error:
        return os.fork(), error


def _forget_ended(alive: set[int]) -> None:
    """Pids are freed here and nowhere else, so that one in ``alive`` is that of a fork."""
    while alive:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        alive.discard(pid)


def _become(fd: int) -> None:
    os.dup2(fd, 0)
    os.dup2(fd, 1)
    os.close(fd)
