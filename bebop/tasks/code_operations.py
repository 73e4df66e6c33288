"""The operations that generated code problems are composed of: how each is told, written and computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Domain = Literal["x", "xs", "s"]
"""A number, a list of numbers, a string; the letter is also the variable's name."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a pipeline. ``{v}`` stands for the value so far, ``{n}`` for the operation's argument."""

    takes: Domain
    gives: Domain
    told: tuple[str, ...]
    """Ways to describe it after "a function that ..."."""
    written: str
    """A Python expression."""
    computed: Callable[[Any, Any], Any]
    """(value, argument) -> value: what the expression does, without evaluating text."""
    arguments: tuple[Any, ...] = (None,)


@dataclass(frozen=True, slots=True)
class Step:
    """An operation with its argument chosen."""

    operation: Operation
    argument: Any
    told: str

    def expression(self, value: str) -> str:
        return self.operation.written.format(v=value, n=self.argument)

    def __call__(self, value: Any) -> Any:
        return self.operation.computed(value, self.argument)


SMALL = (1, 2, 3, 4, 5, 6, 7, 8, 9)
FEW = (1, 2, 3)
FACTORS = (2, 3, 4, 5)
LETTERS = ("a", "b", "c", "d", "e")

OPERATIONS: tuple[Operation, ...] = (
    # numbers
    Operation("x", "x", ("adds {n}", "increases it by {n}"), "{v} + {n}", lambda v, n: v + n, SMALL),
    Operation("x", "x", ("subtracts {n}", "decreases it by {n}"), "{v} - {n}", lambda v, n: v - n, SMALL),
    Operation("x", "x", ("multiplies by {n}", "scales it by {n}"), "{v} * {n}", lambda v, n: v * n, FACTORS),
    Operation("x", "x", ("takes the remainder by {n}", "reduces it modulo {n}"), "{v} % {n}",
              lambda v, n: v % n, SMALL[2:]),
    Operation("x", "x", ("squares it",), "{v} ** 2", lambda v, n: v**2),
    Operation("x", "x", ("negates it", "flips the sign"), "-{v}", lambda v, n: -v),
    Operation("x", "x", ("raises it to at least {n}",), "max({v}, {n})", lambda v, n: max(v, n), SMALL),
    Operation("x", "x", ("limits it to at most {n}",), "min({v}, {n})", lambda v, n: min(v, n), SMALL),
    # lists
    Operation("xs", "xs", ("keeps the even numbers", "drops the odd numbers"), "[x for x in {v} if x % 2 == 0]",
              lambda v, n: [x for x in v if x % 2 == 0]),
    Operation("xs", "xs", ("keeps the odd numbers", "drops the even numbers"), "[x for x in {v} if x % 2 == 1]",
              lambda v, n: [x for x in v if x % 2 == 1]),
    Operation("xs", "xs", ("keeps what is above {n}",), "[x for x in {v} if x > {n}]",
              lambda v, n: [x for x in v if x > n], SMALL),
    Operation("xs", "xs", ("keeps what is below {n}",), "[x for x in {v} if x < {n}]",
              lambda v, n: [x for x in v if x < n], SMALL),
    Operation("xs", "xs", ("adds {n} to each",), "[x + {n} for x in {v}]", lambda v, n: [x + n for x in v], SMALL),
    Operation("xs", "xs", ("multiplies each by {n}",), "[x * {n} for x in {v}]",
              lambda v, n: [x * n for x in v], FACTORS),
    Operation("xs", "xs", ("reverses the list",), "{v}[::-1]", lambda v, n: v[::-1]),
    Operation("xs", "xs", ("sorts the list",), "sorted({v})", lambda v, n: sorted(v)),
    Operation("xs", "xs", ("drops the first {n}",), "{v}[{n}:]", lambda v, n: v[n:], FEW),
    Operation("xs", "xs", ("takes the first {n}",), "{v}[:{n}]", lambda v, n: v[:n], FEW),
    Operation("xs", "x", ("sums the list", "adds everything up"), "sum({v})", lambda v, n: sum(v)),
    Operation("xs", "x", ("counts the items",), "len({v})", lambda v, n: len(v)),
    # strings
    Operation("s", "s", ("makes it upper case",), "{v}.upper()", lambda v, n: v.upper()),
    Operation("s", "s", ("reverses the text",), "{v}[::-1]", lambda v, n: v[::-1]),
    Operation("s", "s", ("repeats it {n} times",), "{v} * {n}", lambda v, n: v * n, FACTORS),
    Operation("s", "s", ("takes the first {n} letters",), "{v}[:{n}]", lambda v, n: v[:n], FEW),
    Operation("s", "s", ("drops the first {n} letters",), "{v}[{n}:]", lambda v, n: v[n:], FEW),
    Operation("s", "s", ("appends {n}", "puts {n} at the end"), "{v} + '{n}'", lambda v, n: v + n, LETTERS),
    Operation("s", "s", ("prepends {n}", "puts {n} in front"), "'{n}' + {v}", lambda v, n: n + v, LETTERS),
    Operation("s", "s", ("removes every {n}",), "{v}.replace('{n}', '')", lambda v, n: v.replace(n, ""), LETTERS),
    Operation("s", "x", ("counts the letters",), "len({v})", lambda v, n: len(v)),
)  # fmt: skip

INPUTS: dict[str, Callable[[random.Random], Any]] = {
    "x": lambda rng: rng.randint(-9, 20),
    "xs": lambda rng: [rng.randint(0, 12) for _ in range(rng.randint(3, 7))],
    "s": lambda rng: "".join(rng.choice("abcde") for _ in range(rng.randint(3, 8))),
}


def draw_pipeline(num_steps: int, rng: random.Random) -> tuple[Step, ...]:
    """A chain of operations whose domains fit; it starts in a random domain and need not stay there."""
    domain: str = rng.choice(("x", "xs", "s"))
    steps: list[Step] = []
    for _ in range(num_steps):
        fitting = [one for one in OPERATIONS if one.takes == domain and (not steps or one != steps[-1].operation)]
        operation = rng.choice(fitting)
        argument = rng.choice(operation.arguments)
        steps.append(Step(operation, argument, rng.choice(operation.told).format(n=argument)))
        domain = operation.gives
    return tuple(steps)
