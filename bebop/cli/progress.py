"""Progress of long work: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[int, str], None]
"""(steps done, a short line of figures) -> None"""

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Iterator[Show]:
    """Yield the function to call after every step."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with live_bar(title, total, console) as show:
            yield show
    else:
        yield plain_lines(title, total, console)


@contextmanager
def live_bar(title: str, total: int, console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, figures="")
        yield lambda done, figures: bar.update(task, completed=done, figures=figures)


def plain_lines(title: str, total: int, console: Console) -> Show:
    started, last_line = time.monotonic(), float("-inf")
    first_done: int | None = None

    def show(done: int, figures: str) -> None:
        nonlocal last_line, first_done
        first_done = done if first_done is None else first_done
        now = time.monotonic()
        if done < total and now - last_line < SECONDS_BETWEEN_LINES:
            return
        last_line = now
        pace = (now - started) / max(1, done - first_done + 1)
        console.print(
            f"{title} {done}/{total}  {figures}  {pace * (total - done):.0f} s left", highlight=False, soft_wrap=True
        )

    return show
