"""The one error a person can cause, and the one way it is shown."""


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    The message is one sentence that names the thing (file, key, setting) and the remedy. The command line prints
    it without a traceback and exits with code 2; a library caller sees an ordinary ``ValueError``.
    """
