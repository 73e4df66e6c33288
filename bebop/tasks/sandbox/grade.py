"""Grading model-written functions. The verdict is reached outside the process that the model's code runs in.

A solution that exits, prints PASSED, patches ``print``, ``json`` or ``__eq__``, or kills its process can only fail to
give values: it never holds what they are compared with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bebop.tasks.sandbox.config import SandboxConfig
from bebop.tasks.sandbox.jail import codec
from bebop.tasks.sandbox.launch import SandboxResult
from bebop.tasks.sandbox.run import run_job

RELATIVE_TOLERANCE = 1e-9
Case = tuple[Sequence[Any], Any]
"""Positional arguments, and the value expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradeResult:
    """How a function did."""

    num_passed: int
    num_cases: int
    reason: str
    """``passed``, ``wrong answer``, ``error`` (the function raised), ``exited early`` or the ending of the run."""
    detail: str = ""
    """The end of what it printed to stderr, or the first error."""

    @property
    def passed(self) -> bool:
        return self.num_passed == self.num_cases


def grade_function(source: str, function_name: str, cases: Sequence[Case], *, config: SandboxConfig) -> GradeResult:
    """Call ``function_name`` of ``source`` on every case, in one sandboxed process, and compare the values here.

    The sandbox is given the arguments alone. Values are data (see ``jail.codec``); floats match within 1e-9, a tuple
    matches a list of the same items, and a bool is no number.
    """
    assert cases, "grading takes at least one case"
    calls = [codec.dumps(list(arguments)) for arguments, _ in cases]
    result = run_job({"source": source, "function": function_name, "calls": calls}, config=config)
    replies = parse_replies(result.replies)
    num_passed = sum(
        index in replies and replies[index][1] is None and values_match(expected, replies[index][0])
        for index, (_, expected) in enumerate(cases)
    )
    reason, detail = _reason(result, replies, num_passed, len(cases))
    return GradeResult(num_passed=num_passed, num_cases=len(cases), reason=reason, detail=detail)


def check_function(
    source: str, function_name: str, *, test_program: str, prelude: str = "", config: SandboxConfig
) -> GradeResult:
    """Run ``test_program`` (a data set's own, which defines ``check(candidate)``) against the function, as one case.

    The tests run in the sandbox, too, in a process of their own that the solution can neither read nor trace; each call
    crosses as data. ``prelude`` is the task's source of helpers that the tests call.
    """
    tests = {"prelude": prelude, "program": test_program, "function": function_name}
    result = run_job({"source": source, "function": function_name, "calls": None}, config=config, secrets=[tests])
    reason = {"ok": "passed", "wrong exit": "wrong answer"}.get(result.reason, str(result.reason))
    return GradeResult(num_passed=int(result.ok), num_cases=1, reason=reason, detail=result.stderr[-500:])


def parse_replies(text: str) -> dict[int, tuple[Any, str | None]]:
    """(value, error) by case, from lines that model code may have written; what is malformed counts as not given."""
    replies: dict[int, tuple[Any, str | None]] = {}
    for line in text.splitlines():
        try:
            index, tree, error = json.loads(line)
            if isinstance(index, int):
                replies.setdefault(index, (codec.decode(tree), None if error is None else str(error)))
        except (ValueError, TypeError, RecursionError):
            continue
    return replies


def values_match(expected: Any, value: Any) -> bool:
    """Whether a decoded value is the expected one."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return expected is value
    if isinstance(expected, float) or isinstance(value, float):
        numbers = isinstance(expected, int | float) and isinstance(value, int | float)
        return numbers and _close(expected, value)
    if isinstance(expected, list | tuple):
        same_length = isinstance(value, list | tuple) and len(value) == len(expected)
        return same_length and all(map(values_match, expected, value))
    if isinstance(expected, dict):
        same_keys = isinstance(value, dict) and value.keys() == expected.keys()
        return same_keys and all(values_match(item, value[key]) for key, item in expected.items())
    return type(expected) is type(value) and expected == value


def _close(expected: float, value: float) -> bool:
    try:
        both_nan = math.isnan(expected) and math.isnan(value)
        return both_nan or math.isclose(expected, value, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE)
    except OverflowError:  # an integer beyond every float
        return False


def _reason(
    result: SandboxResult, replies: dict[int, tuple[Any, str | None]], num_passed: int, num_cases: int
) -> tuple[str, str]:
    if num_passed == num_cases:
        return "passed", ""
    if not result.ok:
        return str(result.reason), result.stderr[-500:]
    errors = [error for _, error in replies.values() if error is not None]
    if errors:
        return "error", errors[0]
    return ("wrong answer" if len(replies) >= num_cases else "exited early"), result.stderr[-500:]
