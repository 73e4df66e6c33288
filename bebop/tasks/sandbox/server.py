"""The fork server of this process, seen from the outside: messages in, a sandbox's report out."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from bebop.tasks.sandbox.jail.server import ISOLATED, PLAIN, WORD_BYTES

HERE = Path(__file__).resolve().parent
BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from jail import server; from jail.main import main; "
    "del sys.path[0]; main(server.serve())"
)
# A bare interpreter: no environment, no user or site packages, UTF-8.
FLAGS = ("-I", "-S", "-X", "utf8", "-c", BOOTSTRAP, str(HERE))


class ForkServer:
    """Starts sandboxes from a warm interpreter, which is started when it is first needed and again if it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def run(self, messages: bytes, timeout_s: float, *, isolated: bool = False) -> bytes | None:
        """The report of a sandbox that is given ``messages``, empty if it died; None if it had to be killed.

        ``isolated``: as the job in them says.
        """
        deadline = time.monotonic() + timeout_s
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid = self._fork(theirs, isolated=isolated)
            try:
                return _exchange(ours, messages, deadline)
            except TimeoutError:
                self._kill(pid)
                with contextlib.suppress(TimeoutError):  # its end is waited for, not depended on
                    _exchange(ours, b"", time.monotonic() + timeout_s)
                return None

    def close(self) -> None:
        """End the server; sandboxes that run go on to their own ends."""
        with self._lock:
            self._stop()

    def _fork(self, end: socket.socket, *, isolated: bool) -> int:
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(ConnectionError):  # it was killed: a new one is asked below
                    return _ask(self._control, end, isolated=isolated)
                self._stop()
            self._control = self._start()
            return _ask(self._control, end, isolated=isolated)

    def _kill(self, pid: int) -> None:
        with self._lock, contextlib.suppress(ConnectionError):
            if self._control is not None:
                self._control.sendall(pid.to_bytes(WORD_BYTES, "big"))

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [os.path.realpath(sys.executable), *FLAGS]
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), cwd="/", env={}, start_new_session=True)
        return ours

    def _stop(self) -> None:
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait()
        self._control = self._process = None


@functools.cache
def fork_server(owner: int) -> ForkServer:
    """That of the process ``owner``, which is the calling one: a fork of ours has one of its own."""
    assert owner == os.getpid()
    server = ForkServer()
    atexit.register(server.close)
    return server


def _ask(control: socket.socket, end: socket.socket, *, isolated: bool) -> int:
    """The pid of a new fork that holds ``end``. ConnectionError if the server is gone."""
    kind = ISOLATED if isolated else PLAIN
    socket.send_fds(control, [kind.to_bytes(WORD_BYTES, "big")], [end.fileno()])
    reply = control.recv(WORD_BYTES)
    if not reply:
        raise ConnectionResetError("the fork server is gone")
    return int.from_bytes(reply, "big")


def _exchange(connection: socket.socket, messages: bytes, deadline: float) -> bytes:
    """Send, then receive to the end. TimeoutError after the deadline."""
    received = bytearray()
    # Who dies, or cannot isolate, leaves messages unread; what it said before is still there.
    with contextlib.suppress(ConnectionError):
        connection.settimeout(_until(deadline))
        connection.sendall(messages)
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 16):
            received += chunk
            connection.settimeout(_until(deadline))
    return bytes(received)


def _until(deadline: float) -> float:
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    return remaining_s
