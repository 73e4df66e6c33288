"""Running acts: commands side by side, what is done marked, so that an interrupted quickstart goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bebop.errors import UserError
from bebop.files import atomic_write
from bebop.quickstart.acts import Act, Step, check_names, log_of, output_of

POLL_SECONDS = 0.25
SECONDS_TO_STOP = 20.0
"""For a command to write what it has, before it is killed."""
MARGIN = 4
"""Columns that what a command prints is set in by when it is shown."""


class Stage(Protocol):
    """Who tells the person what happens."""

    def begin(self, number: int, act: Act) -> None: ...

    def watch(self, messages: Mapping[str, str]) -> None:
        """Name of each running step -> its newest line."""
        ...

    def end(self, act: Act, seconds: float, found: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Running:
    step: Step
    process: subprocess.Popen[bytes]
    log: Path


def perform(acts: Sequence[Act], directory: Path, stage: Stage) -> None:
    """Play every act; UserError naming the log where a command fails."""
    check_names(acts)
    for part in ("out", "logs", "done"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    for number, act in enumerate(acts, start=1):
        stage.begin(number, act)
        started = time.monotonic()
        for wave in act.waves:
            run_side_by_side([step for step in wave if not is_done(directory, step)], directory, stage)
        stage.end(act, time.monotonic() - started, act.found(directory))


def run_side_by_side(steps: Sequence[Step], directory: Path, stage: Stage) -> None:
    """Start all, wait for all, mark each when it is done; whatever ends this early stops those that still run."""
    started: list[Running] = []
    try:
        started += [Running(step, launch(step, directory), log_of(directory, step.name)) for step in steps]
        running = started
        while running := still_running(running, directory):
            stage.watch({one.step.name: last_line(one.log) for one in running})
            time.sleep(POLL_SECONDS)
    finally:
        for one in started:
            stop(one.process)


def still_running(watched: Sequence[Running], directory: Path) -> list[Running]:
    """Those that have not ended; the others are marked as done. UserError where one failed."""
    codes = [one.process.poll() for one in watched]
    for one, code in zip(watched, codes, strict=True):
        if code == 0:
            mark_done(directory, one.step)
    for one, code in zip(watched, codes, strict=True):
        if code:
            raise failure(one, code)
    return [one for one, code in zip(watched, codes, strict=True) if code is None]


def launch(step: Step, directory: Path) -> subprocess.Popen[bytes]:
    """One command with one compute thread: a second process, or a worker of its own, has the other core.

    It has a session of its own, so that Ctrl-C reaches it once, through ``stop``, and it can end at a safe point.
    """
    command = [sys.executable, "-m", "bebop", *step.arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "COLUMNS": str(shutil.get_terminal_size().columns - MARGIN),
    }
    with ExitStack() as stack:
        output = stack.enter_context(output_of(directory, step.name).open("wb"))
        log = stack.enter_context(log_of(directory, step.name).open("wb"))
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=environment, start_new_session=True
        )


def failure(one: Running, code: int) -> UserError:
    return UserError(
        f"`bebop {' '.join(one.step.arguments)}` failed ({last_line(one.log) or f'exit code {code}'}); "
        f"see {one.log}, then run the same quickstart again: it goes on there"
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_done(directory: Path, step: Step) -> bool:
    mark = mark_of(directory, step)
    return mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == list(step.arguments)


def mark_done(directory: Path, step: Step) -> None:
    atomic_write(mark_of(directory, step), json.dumps(list(step.arguments)))


def mark_of(directory: Path, step: Step) -> Path:
    return directory / "done" / f"{step.name}.json"


def last_line(log: Path) -> str:
    """The newest line that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
