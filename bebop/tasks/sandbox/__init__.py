"""Model-written Python, run where it can harm nothing, and graded where it cannot reach.

``run_python`` runs a program, ``grade_function`` compares a function's values with expected ones, ``check_function``
puts a function to a test program. Each call is one short-lived process tree with no network, no environment, no files
but Python's own (read-only) and a scratch directory in memory, under limits on CPU and wall time, memory, processes and
output.
"""

from bebop.tasks.sandbox.config import SandboxConfig
from bebop.tasks.sandbox.grade import GradeResult, check_function, grade_function
from bebop.tasks.sandbox.launch import CannotIsolate, Ending, SandboxResult
from bebop.tasks.sandbox.run import run_python
from bebop.tasks.sandbox.status import SandboxStatus, probe

__all__ = [
    "CannotIsolate",
    "Ending",
    "GradeResult",
    "SandboxConfig",
    "SandboxResult",
    "SandboxStatus",
    "check_function",
    "grade_function",
    "probe",
    "run_python",
]
