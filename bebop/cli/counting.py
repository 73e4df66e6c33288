"""Progress of work that says only that one more thing is done."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from bebop.cli.progress import Show


def ticker(show: Show, what: str) -> Callable[[], None]:
    """A function to call after each of them; ``what`` names them in the plural."""
    number = itertools.count(1)
    return lambda: show(next(number), what)
