"""The same answer in another notation is right, another answer is not, and none of them takes long to tell."""

import sys

import pytest

from bebop.errors import UserError
from bebop.tasks import verifier as verifier_module
from bebop.tasks.answers import extract_answer
from bebop.tasks.equality import is_same_answer
from bebop.tasks.verifier import Verifier


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier()


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("42", "$42$"),
        ("42", "**42**"),
        ("42", "`42`"),
        ("42", r"\$42"),
        ("42", "42 dollars"),
        ("42", r"42\text{ cm}"),
        ("42", r"42^\circ"),
        ("-5", "\N{MINUS SIGN}5"),
        ("$5", "5"),
        ("1,000", "1000"),
        (r"\frac{3}{4}", "0.75"),
        (r"\dfrac{3}{4}", "3/4"),
        ("x^2+1", "1 + x^2"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x=3", "3"),
        ("B", "b"),
        (r"\text{Paris}", "paris"),
        (r"\sqrt{2}", "2^{1/2}"),
        ("sin(x)", r"\sin(x)"),
        ("(1,2)", "( 1, 2 )"),
        (r"\left(1,\frac12\right)", "(1, 0.5)"),
        (r"\{1,2\}", "{2, 1}"),
        ("1, 2", "1,2"),
        ("[0,1)", "[0, 1)"),
        ("2020-01-02", "2020-01-02"),
    ],
)
def test_answers_are_the_same_in_any_notation(reference: str, answer: str, verifier: Verifier) -> None:
    assert is_same_answer(reference, answer, verifier.same)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("Paris", "Pairs"),
        ("no", "on"),
        ("1 2 3", "123"),
        ("now here", "nowhere"),
        ("ACB", "ABC"),
        ("John and Mary", "Mary and John"),
        ("A, B, C", "C, B, A"),
        ("3, 1, 2", "1, 2, 3"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("[0,1)", "(0,1)"),
        (r"\{1,2\}", r"\{1,1\}"),
        ("2020-01-02", "2017"),
        ("2019-2020", "-1"),
        ("12:30", "12:30pm"),
        ("3 km", "3 m"),
        ("10", "10 million"),
        ("42", "42x"),
        ("0.5", r"\frac12 x"),
        ("8", "4+4"),
        ("3/4", "1/4 $ $1/3 $ $3/4"),
        ("x+1", "$x+2$ $x+1$"),
        ("(1,2)", "(3,4)$ $(1,2)"),
        (r"\text{B}", "A$ $B"),
        ("3/4", "1/4=1/3=3/4"),
        ("x+1", "__import__('os').abort()"),
    ],
)
def test_other_answers_are_wrong(reference: str, answer: str, verifier: Verifier) -> None:
    assert not is_same_answer(reference, answer, verifier.same)


@pytest.mark.parametrize(
    "answer",
    ["(a+b+c+d+e+f+g+h)^{99}", r"\exp(\exp(\exp(\exp(99))))", r"((9^{99})\,^{99})\,^{99}", "(" * 60 + "x" + ")" * 60],
)
def test_what_takes_too_long_is_wrong_and_the_next_question_is_answered(
    answer: str, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier_module, "SECONDS", 0.3)
    assert not is_same_answer("x+1", answer, verifier.same)
    monkeypatch.setattr(verifier_module, "SECONDS", 60.0)
    assert is_same_answer("x+1", "1+x", verifier.same)


def test_a_process_that_ends_is_started_anew_and_one_that_never_starts_is_an_error(tmp_path) -> None:
    script = tmp_path / "child.py"
    script.write_text("print('ready', flush=True)\ninput()\n")
    ending = Verifier((sys.executable, str(script)))
    assert [ending.same("x", "y"), ending.same("x", "y")] == [False, False]
    with pytest.raises(UserError, match="math-verify does not start"):
        Verifier((sys.executable, "-c", "")).same("x", "y")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("**Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("ANSWER : 42", "42"),
        (r"so \boxed{\frac{\sqrt{3}}{2}}.", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{1", None),
        (r"Answer: \boxed{7}", r"\boxed{7}"),
    ],
)
def test_the_final_answer_is_found_in_plain_text_and_markdown(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer
