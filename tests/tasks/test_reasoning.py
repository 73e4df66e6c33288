"""reasoning-gym's data sets as a task, and the judging of answers."""

import sys
import time

import pytest

from bebop.errors import UserError
from bebop.tasks.answers import extract_answer, is_harmless, is_same_number
from bebop.tasks.base import Split, split_of
from bebop.tasks.reasoning import ReasoningConfig, ReasoningTask, load_reasoning

reasoning_gym = pytest.importorskip("reasoning_gym")
pytest.importorskip("math_verify")


def load(dataset: str = "chain_sum", seed: int = 0, **fields) -> ReasoningTask:
    return load_reasoning(ReasoningConfig(dataset=dataset, **fields), seed)


def graded(task: ReasoningTask, completion: str, index: int = 0):
    outcome = task.start(task.problem(Split.TRAIN, index)).step(completion).outcome
    assert outcome is not None
    return outcome


@pytest.mark.parametrize(
    "dataset", ["chain_sum", "countdown", "gcd", "spiral_matrix", "basic_arithmetic", "number_sorting"]
)
def test_reference_answer_is_solved(dataset):
    task = load(dataset)
    for index in range(3):
        problem = task.problem(Split.TRAIN, index)
        outcome = task.start(problem).step(task.demonstration(problem, seed=0)[-1].content).outcome
        assert outcome is not None and (outcome.reward, outcome.reason) == (1.0, "solved"), problem


def test_problems_are_a_function_of_seed_split_and_index():
    first, again, other = load(seed=1), load(seed=1), load(seed=2)
    problems = [first.problem(split, index) for split in Split for index in range(20)]
    assert problems == [again.problem(problem.split, problem.index) for problem in problems]
    assert problems != [other.problem(problem.split, problem.index) for problem in problems]


def test_splits_cannot_overlap():
    """Few distinct questions, so that an index-based split would overlap at once."""
    task = load(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    train, heldout = ({task.problem(split, index).messages[0].content for index in range(150)} for split in Split)
    assert len(train) > 50 and len(heldout) > 5
    assert not train & heldout


def test_split_is_decided_by_the_question():
    task = load()
    for split in Split:
        assert all(split_of(task.problem(split, index).facts["entry"]["question"]) is split for index in range(10))


def test_options_reach_the_data_set():
    task = load(options={"min_terms": 5, "max_terms": 5})
    assert task.problem(Split.TRAIN, 0).facts["entry"]["metadata"]["num_terms"] == 5


def test_wrong_and_missing_answers_have_reasons():
    task = load()
    assert (graded(task, "I cannot say").reward, graded(task, "I cannot say").reason) == (0.0, "no answer")
    assert graded(task, "Answer: 123456789").reason == "wrong answer"


def test_partial_credit_is_given_only_where_asked():
    right = load().problem(Split.TRAIN, 0).facts["entry"]["answer"]
    wordy = f"Answer: it is {right}"
    assert graded(load(), wordy).reward == 0.0
    outcome = graded(load(partial_credit=True), wordy)
    assert 0.0 < outcome.reward < 1.0 and outcome.reason == "partly right"


def test_number_in_latex_is_solved():
    right = load().problem(Split.TRAIN, 0).facts["entry"]["answer"]
    assert graded(load(), rf"So it is \boxed{{{right}}}").reason == "solved"
    assert graded(load(), f"Answer: ${right}.00$").reason == "solved"


def test_restating_the_question_is_no_answer():
    task = load()
    expression = task.problem(Split.TRAIN, 0).facts["entry"]["metadata"]["expression"]
    assert graded(task, f"Answer: {expression}").reward == 0.0


@pytest.mark.parametrize(
    "dataset", ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24"]
)
def test_answers_are_never_run(dataset, tmp_path):
    """These scorers evaluate the answer."""
    canary = tmp_path / "canary"
    for attack in (
        f"__import__('pathlib').Path({str(canary)!r}).touch()",
        f"[open({str(canary)!r}, 'w')]",
        f"open({str(canary)!r}, 'w')",
    ):
        outcome = graded(load(dataset), f"Answer: {attack}")
        assert (outcome.reward, outcome.reason) == (0.0, "unsafe answer")
    assert not canary.exists()


def test_scorer_that_chokes_on_an_answer_means_zero():
    assert graded(load("prime_factorization"), "Answer: (").reward == 0.0


def test_unknown_data_set_bad_options_and_missing_package_are_the_users(monkeypatch):
    with pytest.raises(UserError, match="no data set 'chain_sums'"):
        load("chain_sums")
    with pytest.raises(UserError, match="max_term"):
        load(options={"max_term": 3})
    with pytest.raises(UserError, match="chain_sum refuses these options"):
        load(options={"min_terms": 9, "max_terms": 3})
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"needs the package reasoning_gym; run pip install 'bebop-rl\[tasks\]'"):
        load()


def test_data_set_without_heldout_questions_says_so():
    task = load(num_entries=1)
    with pytest.raises(UserError, match="gave no"):
        for split in Split:
            task.problem(split, 0)


def test_data_set_without_reference_answers_cannot_be_demonstrated():
    task = load("graph_color")
    with pytest.raises(UserError, match="no reference answers"):
        task.demonstration(task.problem(Split.TRAIN, 0), seed=0)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Answer: 4", "4"),
        ("Answer: 3\nno, wait.\nAnswer: 4\n", "4"),
        ("Answer:\n1 2\n3 4", "1 2\n3 4"),
        (r"\boxed{3} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("Answer:", None),
        ("4", None),
    ],
)
def test_answer_is_found(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    "answer",
    [
        "-4",
        "1 2 3",
        "[[0, 1], [1, 2]]",
        "EDBACDE",
        "['A', 'B']",
        "x**2/2 + 3*sin(x) + C",
        "exp(2*x)*(x - 1)",
        "_ Q _\nQ _ _",
        "(3 + 4)*5 - 6/2",
        "x**(1/2)",
        '{"a": true, "b": null}',
        '"text"',
        "0x1f",
        "(P ∧ ¬Q)"[1:-1],
        "9**99",
        "",
    ],
)
def test_data_and_small_arithmetic_are_harmless(answer):
    assert is_harmless(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os')",
        "print(1)",
        "open('x')",
        "().__class__",
        "[x for x in (1,)]",
        "lambda: 0",
        "x.y",
        "a[0]",
        "f'{x}'",
        "9**9**9",
        "((9**99)**99)**99",
        "exp(exp(exp(9)))",
        "9**999",
        "'a'*99999999",
        "[0]*99999999",
        "factorial(99999)",
        "5! + print(1)",
        "1 2 print(1)",
        "N(pi, 10)",
        "sin('x')",
        "1 if x else 2",
        "(x := 3)",
        "1 << 99",
        "9" * 5000,
        "(" * 500 + ")" * 500,
        "-" * 1990 + "1",
        "10000000000000",
        "f(x)(y)",
        "sqrt(*x)",
        "{**x}",
        "'\\x00'\x00(",
    ],
)
def test_anything_that_calls_or_grows_is_not(answer):
    assert not is_harmless(answer)


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("1000", "$1{,}000$", True),
        ("1000", "1,000.", True),
        ("-4", r"\(x = -4\)", True),
        ("4", "4.0", True),
        ("4", r"$\boxed{4}$", True),
        ("0.5", r"\frac{1}{2}", True),
        ("0.5", "1/2", True),
        ("0.5", "50%", True),
        ("4", "5", False),
        ("4", "-4", False),
        ("4", "8/2", False),
        ("4", "2 + 2", False),
        ("4", "2**2", False),
        ("3/4", "6/8", False),
        ("four", "4", False),
        ("4", "four", False),
        ("4", "9" * 10_000, False),
        ("", "", False),
    ],
)
def test_same_number(reference, answer, same):
    assert is_same_number(reference, answer) is same


def test_judging_is_quick_on_hostile_text():
    start = time.process_time()
    for text in (
        "1" * 100_000,
        "1," * 50_000,
        "(" * 1_999,
        "{" * 100_000,
        r"\boxed{" * 2_000,
        "**" * 1_000,
        " " * 100_000,
    ):
        extract_answer(text), is_harmless(text), is_same_number("4", text)
    assert time.process_time() - start < 20.0
