"""What transformers says while it loads and saves, kept from the person who asked for something else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers(*, bars: bool = False) -> Iterator[None]:
    """No reports, and progress bars only with ``bars``.

    Its report calls a head's tensors unexpected, as it loads the backbone alone; every tensor is accounted for by
    ``bebop.models.census``.
    """
    level, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def is_watched() -> bool:
    """Whether standard error is a terminal, where bars are seen as such."""
    return sys.stderr.isatty()
