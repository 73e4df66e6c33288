"""The sandbox's first process: starts the roles, collects what they write, enforces time and output, and reports.

It runs no foreign code. Its end is everyone's end: it is PID 1 of its namespace.
"""

import os
import select
import signal
import time

from . import roles
from .frames import receive
from .processes import reason_of, spawn

TESTED_GRACE_S = 1.0
"""After a failed test, how long to wait for the candidate's own end: it may tell why the test failed."""
CHUNK = 1 << 16
OWNER_FD = 1
"""Where the report goes; its other end closes when the process that asked for it dies."""


class OwnerGone(Exception):
    """Nobody waits for the report any more."""


class Output:
    """What a child writes into one pipe, up to a limit."""

    def __init__(self, limit: int):
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.limit, self.data = limit, bytearray()

    def drain(self) -> None:
        """Take what is there, up to the limit. The pipe has no end: this process holds its other side, too."""
        while not self.overflown:
            try:
                self.data += os.read(self.read_end, CHUNK)
            except BlockingIOError:
                return

    @property
    def overflown(self) -> bool:
        return len(self.data) > self.limit

    @property
    def text(self) -> str:
        return self.data[: self.limit].decode(errors="replace")


class Watch:
    """The children, their outputs and their ends."""

    def __init__(self, limits: dict):
        self.limits = limits
        self.deadline = time.monotonic() + limits["wall_s"]
        self.outputs: list[Output] = []
        self.ends: dict[int, str] = {}
        self.wake_end, wake_write_end = os.pipe()
        os.set_blocking(self.wake_end, False)
        os.set_blocking(wake_write_end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write_end, warn_on_full_buffer=False)

    def output(self) -> Output:
        self.outputs.append(Output(self.limits["output_bytes"]))
        return self.outputs[-1]

    def until_end_of(self, pid: int, deadline: float) -> str:
        """Collect outputs until ``pid`` has ended; why, or ``timeout`` or ``output limit`` if it has to be stopped.

        OwnerGone if the process that waits for the report dies.
        """
        poll = select.poll()
        poll.register(self.wake_end, select.POLLIN)
        poll.register(OWNER_FD, 0)  # errors alone
        for output in self.outputs:
            poll.register(output.read_end, select.POLLIN)
        while pid not in self.ends:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return "timeout"
            ready = {fd for fd, _ in poll.poll(remaining_s * 1000)}
            if OWNER_FD in ready:
                raise OwnerGone
            if self.wake_end in ready:
                self._reap()
            for output in self.outputs:
                output.drain()
            if any(output.overflown for output in self.outputs):
                return "output limit"
        return self.ends[pid]

    def _reap(self) -> None:
        """Note every child that has ended; orphans are ours, too. Its last words are in the pipes by then."""
        os.read(self.wake_end, CHUNK)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.ends[pid] = reason_of(status, usage.ru_utime + usage.ru_stime, self.limits)


def run(job: dict) -> dict:
    """Run the job whose first message is ``job``; the report."""
    watch = Watch(job["limits"])
    stdout, stderr, replies = watch.output(), watch.output(), watch.output()
    nothing = os.open(os.devnull, os.O_RDWR)
    if job["function"] is None:
        files = {0: _input(job["stdin"]), 1: stdout.write_end, 2: stderr.write_end}
        pid = spawn(lambda: roles.run_script(job["source"]), files, job["limits"], job["isolated"])
        reason = watch.until_end_of(pid, watch.deadline)
    elif job["calls"] is not None:
        files = {0: nothing, 1: stdout.write_end, 2: stderr.write_end, 3: nothing, 4: replies.write_end}
        pid = spawn(
            lambda: roles.answer_calls(job["source"], job["function"], job["calls"]),
            files,
            job["limits"],
            job["isolated"],
        )
        reason = watch.until_end_of(pid, watch.deadline)
    else:
        reason = _tested(job, watch, nothing, stdout, stderr)
    return {"reason": reason, "stdout": stdout.text, "stderr": stderr.text, "replies": replies.text}


def _tested(job: dict, watch: Watch, nothing: int, stdout: Output, stderr: Output) -> str:
    """Run candidate against tester. ``ok`` if the check passed; else the candidate's end, where that tells more."""
    limits, isolated = job["limits"], job["isolated"]
    questions_end, ask_end = os.pipe()
    replies_end, reply_end = os.pipe()
    files = {0: nothing, 1: stdout.write_end, 2: stderr.write_end, 3: questions_end, 4: reply_end}
    candidate = spawn(lambda: roles.answer_calls(job["source"], job["function"], None), files, limits, isolated)
    # Only now, so that the candidate's process never held them.
    tests = receive(0)
    files = {0: nothing, 1: nothing, 2: stderr.write_end, 3: ask_end, 4: replies_end}
    tester = spawn(lambda: roles.run_tests(**tests), files, limits, isolated)
    for fd in (questions_end, ask_end, replies_end, reply_end):
        os.close(fd)
    reason = watch.until_end_of(tester, watch.deadline)
    if reason != "wrong exit":
        return reason
    own_end = watch.until_end_of(candidate, min(watch.deadline, time.monotonic() + TESTED_GRACE_S))
    return reason if own_end in ("ok", "timeout") else own_end


def _input(text: str) -> int:
    """A descriptor to read ``text`` from, kept in the scratch directory because a pipe would not hold a long one."""
    with open(".stdin", "w", encoding="utf-8") as file:
        file.write(text)
    fd = os.open(".stdin", os.O_RDONLY)
    os.unlink(".stdin")
    return fd
