"""``math-verify`` in a process of its own: whether two expressions are equal, within a few seconds or not at all.

Its work has no bound (a power of a sum expands for hours), and the answer was written by a model. What takes too long
or too much memory is not equal. Lines of JSON go to the process and come back; it ends when its input does.
"""

from __future__ import annotations

import json
import logging
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

from bebop.errors import UserError

SECONDS = 3.0
"""For one pair."""
START_SECONDS = 120.0
"""For the imports."""
MEMORY_BYTES = 2 << 30
READY = "ready"


class Verifier:
    """Starts with the first question that it is asked, and anew after one that it did not survive."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "bebop.tasks.verifier")) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def same(self, reference: str, answer: str) -> bool:
        """Whether the expressions are equal; from any thread, one at a time."""
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([reference, answer]) + "\n")
                process.stdin.flush()
                line = self._read(process, SECONDS)
            except BrokenPipeError:
                line = ""
            if not line:
                self._stop()
            return line == "true"

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = process
        if self._read(process, START_SECONDS) != READY:
            self._stop()
            raise UserError("math-verify does not start; run `python -m bebop.tasks.verifier` to see why")
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    @staticmethod
    def _read(process: subprocess.Popen[str], seconds: float) -> str:
        """The next line; nothing where none comes in time. It answers line by line, so nothing else is buffered."""
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline().strip() if readable else ""


def main() -> None:
    """The process: a pair a line in, ``true`` or ``false`` a line out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    same = comparison()
    print(READY, flush=True)
    for reference, answer in questions(sys.stdin):
        print(json.dumps(same(reference, answer)), flush=True)


def questions(lines: IO[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        reference, answer = json.loads(line)
        yield reference, answer


def comparison() -> Callable[[str, str], bool]:
    """Equality of LaTeX expressions; no other notation, since plain ones are evaluated as Python by sympy."""
    from math_verify import LatexExtractionConfig, parse, verify

    # It warns at every call that it runs without timeouts.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def same(reference: str, answer: str) -> bool:
        gold, given = (
            parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=0)
            for text in (reference, answer)
        )
        return bool(gold and given) and bool(verify(gold, given, timeout_seconds=0))

    return same


if __name__ == "__main__":
    main()
