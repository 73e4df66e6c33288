"""``python -m bebop`` is the command ``bebop``."""

from bebop.cli.main import run

run()
