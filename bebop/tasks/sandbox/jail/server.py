"""The fork server: an interpreter with everything imported, whose forks become sandboxes.

Starting an interpreter and importing takes most of a short program's time. This process runs no foreign code and is
told nothing of the jobs: a fork has a session of its own before it reads its job, and namespaces before it runs it.

One request of eight bytes at a time on descriptor 0: zeros with a descriptor ask for a fork that has it as descriptors
0 and 1, and are answered with the fork's pid; a pid asks for an end of that fork and of its session.
"""

import contextlib
import os
import signal
import socket

WORD_BYTES = 8
CONTROL_FD = 0


def serve() -> None:
    """Return in the forks alone."""
    control = socket.socket(fileno=CONTROL_FD)
    alive: set[int] = set()
    while True:
        word, received, _, _ = socket.recv_fds(control, WORD_BYTES, 1)
        _forget_ended(alive)
        if not word:  # the owner has gone
            os._exit(0)
        if received:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                control.detach()
                _become(received[0])
                return
            os.close(received[0])
            alive.add(pid)
            control.sendall(pid.to_bytes(WORD_BYTES, "big"))
        elif (pid := int.from_bytes(word, "big")) in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


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
