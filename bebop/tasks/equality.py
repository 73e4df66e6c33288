"""Whether an answer is the reference in another notation: the same text, number, list, set or expression.

Words are compared as words: to a computer algebra system ``Pairs`` is a product of letters and equal to ``Paris``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bebop.tasks.answers import NUMBER, bare, is_same_number

SameExpression = Callable[[str, str], bool]
"""Of two short expressions in LaTeX or plain signs, such as ``Verifier.same``."""

MAX_EXPRESSION_LENGTH = 200
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|operatorname)\{([^{}]*)\}")
AROUND_SIGNS = re.compile(r"\s*([^\w\s])\s*")
SPACING = re.compile(r"\\left|\\right|\\[!,;: ]|~")
NAMES = r"(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|pi"
"""Plain, where LaTeX has a command."""
FUNCTION = re.compile(rf"(?<!\\)\b({NAMES})\b")
COMMAND = re.compile(rf"\\[A-Za-z]+|\b(?:{NAMES}|sqrt)\b")
WORD = re.compile(r"[A-Za-z]{2,}")
FRACTION = re.compile(r"[-+]?\d+\s*/\s*\d+")
MARKS = re.compile(r"[\d\s:./-]+")
"""What dates, times and ranges are made of."""
UNIT = re.compile(r"(?<=\d)\s*(?:\^\{?\\circ\}?|°|[A-Za-z]{2,20})$")
"""A word or degrees; one letter is as likely a variable."""
SCALE = re.compile(r"(?:hundred|thousand|[mbtr]+illion|bn|dozen)s?", re.IGNORECASE)
BRACKETS = {"(": ")]", "[": "])", "{": "}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """Answers between commas."""

    opening: str
    closing: str
    parts: tuple[str, ...]

    @property
    def is_set(self) -> bool:
        return self.opening == "{"


def is_same_answer(reference: str, answer: str, same_expression: SameExpression) -> bool:
    """Order counts in lists and tuples and not in sets; a unit may follow a number whose reference has none."""
    reference, answer = tidy(reference), tidy(answer)
    if as_text(reference) == as_text(answer):
        return True
    if NUMBER.fullmatch(reference):
        return is_same_number(reference, without_unit(answer))
    if is_same_number(reference, answer):
        return True
    ours, theirs = sequence(reference), sequence(answer)
    if ours or theirs:
        return ours is not None and theirs is not None and _is_same_sequence(ours, theirs, same_expression)
    if not (is_expression(reference) and is_expression(answer)):
        return False
    return same_expression(*(FUNCTION.sub(r"\\\1", one) for one in (reference, answer)))


def tidy(text: str) -> str:
    """Without Markdown, LaTeX's delimiters, spacing and a currency sign."""
    text = bare(text.strip().strip("`").removeprefix("**").removesuffix("**").replace("\u2212", "-"))
    text = SPACING.sub("", text).replace(r"\{", "{").replace(r"\}", "}")
    return re.sub(r"^\\?[$€£](?=\d)", "", text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")).strip()


def as_text(text: str) -> str:
    """What is left to compare of words: without capitals, and with spaces between words and numbers alone."""
    return " ".join(AROUND_SIGNS.sub(r"\1", TEXT.sub(r"\1", text)).split()).casefold()


def without_unit(answer: str) -> str:
    """A number without the one word behind it, unless that is part of the number."""
    answer = TEXT.sub(r"\1", answer)
    unit = UNIT.search(answer)
    return answer if unit is None or SCALE.fullmatch(unit.group().strip()) else answer[: unit.start()]


def sequence(text: str) -> Sequence | None:
    """The parts between commas outside brackets; None for a text without such commas."""
    opening, closing, inner = "", "", text
    if text and text[0] in BRACKETS and text[-1] in BRACKETS[text[0]] and _splits(text[1:-1]) is not None:
        opening, closing, inner = text[0], text[-1], text[1:-1]
    parts = _splits(inner)
    if parts is None or (len(parts) < 2 and opening != "{"):
        return None
    return Sequence(opening=opening, closing=closing, parts=tuple(part.strip() for part in parts))


def is_expression(text: str) -> bool:
    """Whether it is a formula: short, at most one equation, without words, and no date, time or range."""
    if len(text) > MAX_EXPRESSION_LENGTH or "$" in text or text.count("=") > 1 or TEXT.search(text):
        return False
    is_formula = bool(NUMBER.fullmatch(text) or FRACTION.fullmatch(text)) or not MARKS.fullmatch(text)
    return is_formula and not WORD.search(COMMAND.sub(" ", text))


def _is_same_sequence(ours: Sequence, theirs: Sequence, same_expression: SameExpression) -> bool:
    if (ours.opening, ours.closing, len(ours.parts)) != (theirs.opening, theirs.closing, len(theirs.parts)):
        return False
    left = list(theirs.parts)
    for part in ours.parts:
        candidates = left if ours.is_set else left[:1]
        found = next((one for one in candidates if is_same_answer(part, one, same_expression)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _splits(text: str) -> list[str] | None:
    """The parts between commas outside brackets; None where brackets do not close."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return None
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts if depth == 0 else None
