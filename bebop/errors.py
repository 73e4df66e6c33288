"""The one error a person can cause, and the one way it is shown."""

import sys
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    The message is one sentence that names the thing (file, key, setting) and the remedy. The command line prints
    it without a traceback and exits with code 2; a library caller sees an ordinary ``ValueError``.
    """


def run_as_program(main: Callable[[Sequence[str]], object]) -> None:
    """For modules that are run with ``python -m``: ``main`` with what follows the module's name, mistakes shown as
    ``bebop`` shows them."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
