"""Where the parts of a run live: the learner here, every worker in a process of its own.

The parts are plain objects; another placement (several machines) holds ``RolloutWorker`` elsewhere and offers a
``Worker`` here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bebop.rl.messages import Channel, Message, Start


class Worker(Protocol):
    """A rollout worker, wherever it is."""

    last_heard: float
    """When it last said something, by ``time.monotonic``."""

    @property
    def pid(self) -> int: ...

    def send(self, message: Message) -> None:
        """Say something. A worker that is gone does not hear it: its end arrives in the inbox."""
        ...

    def kill(self) -> None: ...

    def close(self) -> None:
        """Let it end, or make it."""
        ...

    def last_words(self) -> str:
        """How it ended and the end of what it printed."""
        ...


Inbox = Callable[[Worker, Message | None], None]
"""Takes what a worker says, from the thread that listens to it; None when it has died or closed."""

CLOSING_SECONDS = 5.0
TAIL_BYTES = 2000


class WorkerProcess:
    """A worker in a process on this machine."""

    def __init__(self, start: Start, log: Path, inbox: Inbox) -> None:
        """Start it; its standard output and error are appended to ``log``."""
        ours, theirs = socket.socketpair()
        self.last_heard = time.monotonic()
        self._log = log
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bebop.rl.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(os.environ),  # not the C library's, where ``training.allocator`` bounds the learner's kernels
                process_group=0,  # Ctrl-C is for the learner, which lets the workers end in order
            )
        self._channel = Channel(ours)
        self.send(start)
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # it is gone, which the listening thread sees as well
            self._channel.send(message)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._channel.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        self.close()
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return f"{how}; it said: {lines[-1]}" if lines else how

    def _listen(self, inbox: Inbox) -> None:
        while True:
            message = self._channel.receive()
            self.last_heard = time.monotonic()
            inbox(self, message)
            if message is None:
                return
