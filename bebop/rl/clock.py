"""Where the time of a step goes, on the learner's side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """Wall seconds of the step and of its parts. A step lasts from one ``lap`` to the next, less what was paused."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._paused = 0.0
        self._parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to this part."""
        started = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile belongs to no step."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def lap(self) -> dict[str, float]:
        """End the step: its seconds as ``step``, and its parts."""
        now = time.perf_counter()
        seconds = {"step": now - self._started - self._paused, **self._parts}
        self._started, self._paused, self._parts = now, 0.0, {}
        return seconds
