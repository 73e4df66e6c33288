"""The two processes that run code: the candidate (model-written) and the tester (a data set's own test program).

The candidate answers calls of one function; the tester puts them. They share no memory and exchange JSON lines, so
the tester compares plain data, and the candidate never sees the tests.
"""

import errno
import os
import sys
import types

from . import codec
from .frames import write_all

QUESTIONS_FD, REPLIES_FD = 3, 4
"""What the candidate reads calls from (one line, the arguments) and writes replies to."""
EXIT_ERROR, EXIT_MEMORY, EXIT_STORAGE, EXIT_PROCESSES = 1, 91, 92, 93


def warm_up() -> None:
    """Run a program of our own, once, before any fork: what the interpreter makes for its first program, every fork
    would make again, for a millisecond or two."""
    main = sys.modules["__main__"]
    own = _execute("def echo(value):\n    return value\n", "warm_up.py")
    _reply(0, own["echo"], codec.dumps([[1, ("two", None)]]))
    sys.modules["__main__"] = main


def run_script(source: str) -> None:
    """Run ``source`` as a program of its own; its end is the process's end."""
    try:
        _execute(source, "solution.py")
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(_reported(error))


def answer_calls(source: str, function: str, calls: list[str] | None) -> None:
    """Define ``function``, then answer ``calls`` (none: lines as they arrive), each with [index, value, error]."""
    try:
        namespace = _execute(source, "solution.py")
        lines = calls if calls is not None else open(QUESTIONS_FD, closefd=False)  # noqa: SIM115
        for index, line in enumerate(lines):
            write_all(REPLIES_FD, _reply(index, namespace[function], line))
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(_reported(error))
    sys.stdout.flush()
    os._exit(0)  # without waiting for the solution's threads and exit handlers


def run_tests(prelude: str, program: str, function: str) -> None:
    """Run ``prelude`` and ``program``, which defines ``check(candidate)``; exit 0 if the check passes.

    What ``prelude`` defines (helpers that the tests call) comes from the task, never from the model; ``function``, by
    which some tests call the candidate, is the candidate.
    """
    questions, replies = open(QUESTIONS_FD, "w", closefd=False), open(REPLIES_FD, closefd=False)  # noqa: SIM115

    def candidate(*arguments):
        questions.write(codec.dumps(arguments) + "\n")
        questions.flush()
        _index, value, error = codec.loads(replies.readline() or '[0, null, "the solution is gone"]')
        if error is not None:
            raise RuntimeError(error)
        return value

    try:
        namespace = _execute(f"{prelude}\n{program}", "test.py")
        namespace[function] = candidate
        namespace["check"](candidate)
    except BaseException as error:
        os._exit(_reported(error))
    os._exit(0)


def _execute(source: str, filename: str) -> dict:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, filename, "exec"), module.__dict__)
    return module.__dict__


def _reply(index: int, function, line: str) -> bytes:
    value, error = None, None
    try:
        value = codec.encode(function(*codec.loads(line)))
        return (codec.json.dumps([index, value, None]) + "\n").encode()
    except (MemoryError, SystemExit):
        raise
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"[:500]
    return (codec.json.dumps([index, None, error]) + "\n").encode()


def _reported(error: BaseException) -> int:
    """Print ``error`` as Python would, and return the exit status that tells its kind."""
    if isinstance(error, MemoryError):
        error.__traceback__ = None  # lets go of the frames, and of the memory they hold
        write_all(2, b"MemoryError\n")
        return EXIT_MEMORY
    error.__traceback__ = _beyond_this_file(error.__traceback__)
    sys.__excepthook__(type(error), error, error.__traceback__)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return EXIT_STORAGE
    return EXIT_PROCESSES if number == errno.EAGAIN else EXIT_ERROR


def _beyond_this_file(traceback):
    while traceback and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
