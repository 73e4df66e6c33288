"""Judging an answer's text: where it is, whether a scorer that evaluates may see it, and which number it is.

Some of reasoning-gym's scorers call ``eval`` or sympy's ``parse_expr`` (``eval`` underneath) on the answer, and the
answer was written by a model. ``is_harmless`` lets through data and small arithmetic alone.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import re

from bebop.errors import UserError

INSTRUCTION = "\n\nThink it through. Then end with a line that starts with `Answer:` and gives the final answer alone."
MAX_EVALUATED_LENGTH = 2_000
MAX_CONSTANT = 10**12
MAX_EXPONENT = 99
MAX_GROWTH = 2
"""Nested powers and exponentials: with exponents of two digits, two levels stay small and four fill any memory."""
FUNCTIONS = frozenset(
    (
        "sqrt",
        "log",
        "ln",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "asin",
        "acos",
        "atan",
        "exp",
        "sinh",
        "cosh",
        "tanh",
    )
)
GROWING = frozenset(("exp", "sinh", "cosh"))
CALLING = re.compile(r"[(!'\"`]|__")
"""What a text that is not Python needs to become a call after sympy's rewriting."""

NUMBER = re.compile(r"(?:[A-Za-z]\s*=\s*)?[-+]?\s*\d{1,30}(?:(?:,|\{,\})\d{3}){0,10}(?:\.\d{1,30})?\s*(?:\\?%)?")
FRACTION = re.compile(r"-?\\[dt]?frac\{-?\d{1,12}\}\{\d{1,12}\}|-?\d{1,12}\s*/\s*\d{1,12}")
BOXED = "\\boxed{"
MARKER = re.compile(r"\**\banswer\**\s*:\**", re.IGNORECASE)
"""In plain text and in Markdown: `Answer:`, `**Answer:**`."""


def require_math_verify(task: str) -> None:
    """UserError where the package ``math-verify``, which judges the task's answers, is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(f"the task {task} needs the package math-verify; run pip install 'bebop-rl[tasks]'")
    # It warns at every call that it runs without timeouts; see ``is_same_number``.
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def extract_answer(completion: str) -> str | None:
    """What follows the last ``Answer:``, to the end (it may have many lines), or else the last ``\\boxed{...}``."""
    markers = list(MARKER.finditer(completion))
    found = completion[markers[-1].end() :].strip() if markers else last_boxed(completion)
    return found.removesuffix("**").strip() or None


def last_boxed(text: str) -> str:
    """What the last box holds, braces within it counted; nothing where there is none or it has no end."""
    _, opened, rest = text.rpartition(BOXED)
    depth = 1 if opened else 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if opened and depth == 0:
            return rest[:place].strip()
    return ""


def is_harmless(answer: str) -> bool:
    """Whether evaluating ``answer`` can neither call anything nor take long."""
    if len(answer) > MAX_EVALUATED_LENGTH:
        return False
    try:
        return _growth(ast.parse(answer.strip(), mode="eval").body) <= MAX_GROWTH
    except (SyntaxError, ValueError):
        return _is_json(answer) or not CALLING.search(answer)
    except (MemoryError, RecursionError):  # how the parser refuses deep nesting, and how we do
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _growth(node: ast.expr) -> float:
    """How many powers and exponentials are nested in ``node``; infinite for anything but data and arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return 0 if abs(number) <= MAX_CONSTANT else float("inf")
        case ast.Constant():
            return 0
        case ast.Name(id=name):
            return float("inf") if "__" in name else 0
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return max(map(_growth, items), default=0)
        case ast.Dict(keys=keys, values=values):
            return max((_growth(item) if item else float("inf") for item in (*keys, *values)), default=0)
        case ast.UnaryOp(operand=operand):
            return _growth(operand)
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent) if _is_small_exponent(exponent):
            return 1 + _growth(base)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
            return max(_operand_growth(left), _operand_growth(right))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return (name in GROWING) + _operand_growth(argument)
    return float("inf")


def _operand_growth(node: ast.expr) -> float:
    """As ``_growth``, without strings and sequences: those repeat under ``*``, and sympy evaluates strings."""
    allowed = isinstance(node, ast.Name | ast.UnaryOp | ast.BinOp | ast.Call)
    allowed = allowed or (isinstance(node, ast.Constant) and isinstance(node.value, int | float))
    return _growth(node) if allowed else float("inf")


def _is_small_exponent(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() as number):
            return abs(number) <= MAX_EXPONENT
        case ast.Name():
            return True
        case ast.UnaryOp(operand=operand):
            return _is_small_exponent(operand)
        case ast.BinOp(op=ast.Div(), left=left, right=right):
            return _is_small_exponent(left) and _is_small_exponent(right)
    return False


def is_same_number(reference: str, answer: str) -> bool:
    """Whether ``answer`` is the number ``reference`` in another notation (``$1{,}000$``, ``\\frac{1}{2}`` for 0.5).

    It must be one number, not an expression: the question restated has the right value, too. A fraction may stand for
    a decimal alone, since 8/2 may be what was asked. ``math-verify`` compares.
    """
    import math_verify

    reference, answer = bare(reference), bare(answer)
    readable = NUMBER.fullmatch(answer) or ("." in reference and FRACTION.fullmatch(answer))
    if not (NUMBER.fullmatch(reference) and readable):
        return False
    # Its timeouts are signals, which only the main thread may set; numbers of this size need none.
    gold, given = (math_verify.parse(f"${text}$", parsing_timeout=0) for text in (reference, answer))
    return math_verify.verify(gold, given, timeout_seconds=0)


def bare(text: str) -> str:
    """``text`` without LaTeX's delimiters, a box, or a full stop at the end."""
    text = text.strip().removesuffix(".").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text.removeprefix(opening).removesuffix(closing).strip()
    return text
