"""The sandbox's ordinary life: outputs, exits, grading, refusal."""

import os
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bebop.errors import UserError
from bebop.tasks.sandbox import Ending, SandboxConfig, check_function, grade_function, probe, run_python
from bebop.tasks.sandbox.grade import parse_replies, values_match
from bebop.tasks.sandbox.jail import codec
from bebop.tasks.sandbox.launch import CannotIsolate, launch
from bebop.tasks.sandbox.run import must_isolate
from bebop.tasks.sandbox.status import SandboxStatus

CONFIG = SandboxConfig(wall_s=20.0, cpu_s=1)
SUM_CASES = [([[1, 2, 3]], 6), ([[]], 0), ([[-1, 1]], 0)]

isolating = pytest.mark.skipif(not probe().isolated, reason=probe().missing)


def graded(source: str, cases=SUM_CASES, config=CONFIG):
    return grade_function(textwrap.dedent(source), "total", cases, config=config)


@isolating
class TestRunning:
    def test_program_reads_stdin_and_prints(self):
        text = "línea\n" * 50_000
        result = run_python("import sys; text = sys.stdin.read(); print(len(text), text[1])", config=CONFIG, stdin=text)
        assert (result.ok, result.stdout) == (True, "300000 í\n")

    def test_exception_is_a_wrong_exit_whose_traceback_shows_the_program_alone(self):
        result = run_python("def f():\n    return 1 / 0\nf()", config=CONFIG)
        assert result.reason is Ending.WRONG_EXIT
        assert result.stderr.splitlines()[1].startswith('  File "solution.py", line 3')
        assert result.stderr.endswith("ZeroDivisionError: division by zero\n")

    @pytest.mark.parametrize(
        ("code", "reason"), [("0", Ending.OK), ("3", Ending.WRONG_EXIT), ("'why'", Ending.WRONG_EXIT)]
    )
    def test_exit_status_decides(self, code, reason):
        assert run_python(f"import sys; sys.exit({code})", config=CONFIG).reason is reason

    def test_program_is_main_and_its_exit_handlers_run(self):
        source = """
            import atexit, threading
            atexit.register(print, "bye")
            threading.Thread(target=print, args=("thread",)).start()
            if __name__ == "__main__": print("main")
        """
        assert sorted(run_python(textwrap.dedent(source), config=CONFIG).stdout.split()) == ["bye", "main", "thread"]

    def test_standard_library_works_in_the_sandbox(self):
        source = """
            import asyncio, collections, ctypes, dataclasses, decimal, hashlib, json, multiprocessing, random
            import sqlite3, ssl, subprocess, tempfile, zlib
            with tempfile.TemporaryFile() as file: file.write(b"x")
            print(asyncio.run(asyncio.sleep(0, "slept")), sqlite3.connect(":memory:").execute("select 1").fetchone())
        """
        assert run_python(textwrap.dedent(source), config=CONFIG).stdout == "slept (1,)\n"

    def test_source_that_does_not_compile_is_a_wrong_exit(self):
        for source in ("def", "x = '\0'", "x = '\ud800'"):
            assert run_python(source, config=CONFIG).reason is Ending.WRONG_EXIT, source

    def test_runs_leave_no_open_files_in_the_caller(self):
        run_python("pass", config=CONFIG)
        before = sorted(os.listdir("/proc/self/fd"))
        run_python("pass", config=CONFIG)
        assert sorted(os.listdir("/proc/self/fd")) == before

    def test_many_threads_grade_at_once(self):
        def passed(number: int) -> bool:
            return graded(f"def total(xs): return sum(xs) + {number % 2}").passed

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(passed, range(12))) == [True, False] * 6


@isolating
class TestGrading:
    def test_right_function_passes(self):
        result = graded("def total(xs): return sum(xs)")
        assert (result.passed, result.num_passed, result.reason) == (True, 3, "passed")

    def test_each_case_counts(self):
        result = graded("def total(xs): return sum(xs) if len(xs) < 3 else 7")
        assert (result.passed, result.num_passed, result.reason) == (False, 2, "wrong answer")

    def test_exception_in_one_case_is_told_and_leaves_the_others(self):
        result = graded("def total(xs): return xs[0] and sum(xs)")
        assert (result.num_passed, result.reason, result.detail) == (2, "error", "IndexError: list index out of range")

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("def other(xs): return sum(xs)", "wrong exit"),
            ("def total(xs) return", "wrong exit"),
            ("def total(xs):\n    while True: pass", "cpu limit"),
            ("def total(xs): return [0] * 10**12", "memory limit"),
            ("def total(xs): return 'x' * 10**6", "output limit"),
            ("def total(xs): return object()", "error"),
            ("def total(xs):\n    ys = []; ys.append(ys); return ys", "error"),
            ("import os\ndef total(xs): os._exit(0)", "exited early"),
            ("import sys\ndef total(xs): sys.exit(0)", "exited early"),
            ("import os\ndef total(xs): os.abort()", "killed"),
        ],
    )
    def test_failures_have_a_named_reason(self, source: str, reason: str):
        result = graded(source)
        assert (result.num_passed, result.reason) == (0, reason)

    def test_a_call_cannot_change_the_arguments_of_the_next(self):
        cases = [([[1, 2]], 2), ([[1, 2]], 2)]
        assert graded("def total(xs):\n    xs.append(1); return len(xs) - 1", cases).passed

    def test_prints_do_not_mix_with_values(self):
        assert graded("def total(xs):\n    print('[0, 999, null]')\n    return sum(xs)").passed

    @pytest.mark.parametrize(
        "source",
        [
            "print('PASSED'); raise SystemExit(0)",
            """
            class Equal(int):
                def __eq__(self, other): return True
                __hash__ = int.__hash__
            def total(xs): return Equal(41)
            """,
            """
            import json, builtins, sys
            json.dumps = lambda *_: '[0, 6, null]'
            builtins.sum = lambda xs: 6
            sys.exit = lambda *_: None
            def total(xs): return 41
            """,
            """
            import gc, sys
            from jail import watch, frames, codec
            codec.encode = lambda value: {"passed": True}
            def total(xs): return True
            """,
            """
            import os
            for fd in range(64):
                try: os.write(fd, b'{"reason": "ok", "stdout": "", "stderr": "", "replies": ""}')
                except OSError: pass
            os._exit(0)
            """,
        ],
    )
    def test_verdict_cannot_be_forged(self, source: str):
        assert not graded(source, [([[1, 2, 3]], 6), ([[4]], 4), ([[5]], 5)]).passed

    def test_expected_values_never_enter_the_process(self):
        source = """
            import ctypes, gc, sys
            def total(xs):
                needle = str(int("271828182845904") + 1)
                texts = [item for item in gc.get_objects() if isinstance(item, (str, list, dict))]
                frames, frame = [], sys._getframe()
                while frame:
                    frames.append(repr(frame.f_locals))
                    frame = frame.f_back
                return any(needle in repr(text) for text in frames + texts if text is not frames)
        """
        result = graded(source, [([[1]], 271828182845905)], SandboxConfig(cpu_s=5, wall_s=20))
        assert result.reason == "wrong answer", result


@isolating
class TestCheckPrograms:
    TEST = """
def check(candidate):
    assert candidate([1, 2]) == (3, {'n': 2})
    assert twice(candidate([2])[0]) == 4
"""
    PRELUDE = "def twice(x): return 2 * x"
    RIGHT = "def total(xs): return sum(xs), {'n': len(xs)}"

    def check(self, source: str, test: str = TEST):
        return check_function(textwrap.dedent(source), "total", test_program=test, prelude=self.PRELUDE, config=CONFIG)

    def test_right_function_passes(self):
        assert self.check(self.RIGHT).passed

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("def total(xs): return sum(xs), {'n': 0}", "wrong answer"),
            ("def total(xs): return [sum(xs), {'n': len(xs)}]", "wrong answer"),
            ("def total(xs): raise ValueError('no')", "wrong answer"),
            ("def total(xs):\n    while True: pass", "cpu limit"),
            ("def total(xs): return [0] * 10**12", "memory limit"),
            ("import time\ndef total(xs): time.sleep(1000)", "timeout"),
            ("while True: print('x' * 1000)", "output limit"),
            ("import os\nos._exit(0)", "wrong answer"),
            ("import sys\nsys.exit(0)", "wrong answer"),
            ("import os\ndef total(xs): os.kill(-1, 9)", "killed"),
        ],
    )
    def test_failures_have_a_named_reason(self, source: str, reason: str):
        config = CONFIG.model_copy(update={"wall_s": 2.0 if reason == "timeout" else 20.0})
        result = check_function(source, "total", test_program=self.TEST, prelude=self.PRELUDE, config=config)
        assert (result.passed, result.reason) == (False, reason)

    def test_helpers_of_the_tests_are_the_task_s_own_not_the_model_s(self):
        assert not self.check(
            "def twice(x): return 4\ndef total(xs): return (3, {'n': 2}) if xs == [1, 2] else (9, {})"
        ).passed

    def test_solution_can_neither_read_nor_stop_the_tests(self):
        source = """
            import gc, os, sys
            sys.modules["__main__"].check = lambda candidate: None
            import builtins
            builtins.AssertionError = ValueError
            def total(xs):
                seen = [item for item in gc.get_objects() if "".join(("assert", " candidate")) in repr(item)[:10**5]]
                return ("seen",) if seen else ("unseen",)
        """
        assert self.check(source, "def check(candidate):\n    assert candidate([1]) == ('unseen',), 'seen'").passed

    def test_solution_cannot_answer_the_tester_out_of_turn(self):
        source = """
            import os
            for _ in range(9): os.write(4, b'[0, true, null]\\n')
            def total(xs): return True
        """
        assert not self.check(source).passed


class TestRefusal:
    def test_machine_that_can_make_namespaces_keeps_all_doors_shut(self):
        """Where the self-test runs but reaches something, the other tests here would be skipped."""
        assert "self-test" not in probe().missing

    CANNOT = SandboxStatus(isolated=False, mechanism="", missing="unshare: Operation not permitted; allow it")

    def test_machine_that_cannot_isolate_refuses(self):
        with pytest.raises(UserError, match="unshare: Operation not permitted"):
            must_isolate(self.CANNOT, SandboxConfig())

    def test_unless_the_config_accepts_the_risk(self):
        assert must_isolate(self.CANNOT, SandboxConfig(allow_unisolated=True)) is False

    def test_machine_that_can_isolates_even_if_it_need_not(self):
        can = SandboxStatus(isolated=True, mechanism="namespaces", missing="")
        assert must_isolate(can, SandboxConfig(allow_unisolated=True)) is True

    @isolating
    def test_step_that_fails_is_named(self, monkeypatch):
        monkeypatch.setattr(
            "bebop.tasks.sandbox.launch.python_view",
            lambda: {"readable": ["/no/such/library"], "hidden": [], "links": []},
        )
        with pytest.raises(CannotIsolate, match="mount /no/such/library: No such file or directory"):
            launch({"source": "", "function": None, "stdin": ""}, config=CONFIG, isolated=True)

    def test_unisolated_run_still_has_limits_and_no_environment(self, monkeypatch):
        monkeypatch.setenv("BEBOP_SECRET", "hunter2")
        job = {"function": None, "stdin": ""}
        result = launch({"source": "import os; print(dict(os.environ))", **job}, config=CONFIG, isolated=False)
        assert (result.reason, result.stdout) == (Ending.OK, "{}\n")
        result = launch({"source": "while True: pass", **job}, config=CONFIG, isolated=False)
        assert result.reason is Ending.CPU_LIMIT
        result = launch({"source": "x = bytearray(1 << 40)", **job}, config=CONFIG, isolated=False)
        assert result.reason is Ending.MEMORY_LIMIT

    def test_unisolated_run_kills_the_children_it_leaves(self):
        source = """
            import os, time
            child = os.fork()
            if child == 0: time.sleep(1000)
            print(child)
        """
        job = {"source": textwrap.dedent(source), "function": None, "stdin": ""}
        child = int(launch(job, config=CONFIG, isolated=False).stdout)
        deadline = time.monotonic() + 30
        while _is_running(child):
            assert time.monotonic() < deadline, "the child lives on"
            time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestValues:
    VALUES = (None, True, 3, 2.5, "é\ud800", [1, (2, {3}), {"a": [], (1, 2): None}], {}, set(), float("inf"))

    @pytest.mark.parametrize("value", VALUES, ids=repr)
    def test_codec_gives_back_equal_values_of_equal_types(self, value):
        assert repr(codec.loads(codec.dumps(value))) == repr(value)

    @pytest.mark.parametrize("value", [object(), b"", 1j, [len]], ids=["object", "bytes", "complex", "function"])
    def test_codec_refuses_what_is_not_data(self, value):
        with pytest.raises(TypeError, match="cannot leave the sandbox"):
            codec.dumps(value)

    @pytest.mark.parametrize(
        ("expected", "value", "match"),
        [
            (1, 1, True),
            (1, True, False),
            (True, 1, False),
            (1.0, 1, True),
            (0.3, 0.1 + 0.2, True),
            (0.3, 0.30001, False),
            (float("nan"), float("nan"), True),
            (float("inf"), 10**400, False),
            ([1, 2], (1, 2), True),
            ([1, 2], [1, 2, 3], False),
            ([1, 2], [2, 1], False),
            ([[1], True], [[1], 1], False),
            ({"a": 1}, {"a": 1}, True),
            ({"a": 1}, {"a": 1, "b": 2}, False),
            ({"a": [1]}, {"a": [2]}, False),
            ("1", 1, False),
            (None, 0, False),
            ({1, 2}, {2, 1}, True),
            ({1, 2}, [1, 2], False),
        ],
    )
    def test_matching(self, expected, value, match: bool):
        assert values_match(expected, value) is match

    def test_replies_are_parsed_with_suspicion(self):
        nested = "[" * 100_000 + "]" * 100_000
        lines = [
            "nonsense",
            "[0]",
            '{"a": 1}',
            nested,
            '[0, {"evil": 1}, null]',
            '[1, {"set": [[]]}, null]',
            "[2, 5, null]",
        ]
        lines += [
            "[2, 6, null]",
            '["x", 1, null]',
            "[1e999, 0, null]",
            "[3, " + "9" * 5000 + ", null]",
            '[4, {"dict": 7}, null]',
        ]
        assert parse_replies("\n".join(lines)) == {2: (5, None)}
