"""The worlds behind the agent's tools, and the expert that shows how to act in them."""

from __future__ import annotations

import ast
import json
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import Field, model_validator

from bebop.config import ConfigModel
from bebop.tasks.base import Message, Outcome, check_range

ITEMS = ("fig", "nut", "tea", "rice", "milk", "corn", "salt", "lime", "plum", "oats")
SETTINGS = {
    "color": ("red", "blue", "green", "gray"),
    "size": ("small", "large", "wide", "tall"),
    "mode": ("fast", "slow", "safe", "dry"),
    "level": ("one", "two", "six", "ten"),
}
PATHS = ("app.cfg", "base.cfg", "main.cfg", "site.cfg", "user.cfg")
SLIPS = 0.4
"""Share of the expert's file episodes in which a wrong value is written first, so that what to do after a failed check
is shown too."""
CALCULATED = 0.5
"""Share of the expert's sums that the calculator does, which is what RL can find: few come right without it."""
MAX_EXPRESSION = 40
"""Characters of an expression the calculator accepts."""


class AgentConfig(ConfigModel):
    """Size of the generated problems and length of an episode."""

    max_turns: int = Field(default=8, ge=1)
    """Turns of the policy before the episode ends with ``turn limit``."""
    max_price: int = Field(default=20, ge=2)
    min_items: int = Field(default=2, ge=2, le=4)
    max_items: int = Field(default=2, ge=2, le=4)
    show_tools: bool = True
    """Whether the chat opens with the description of the tools."""

    @model_validator(mode="after")
    def _check(self) -> AgentConfig:
        check_range("items", self.min_items, self.max_items)
        return self


class World(Protocol):
    """A small state that tools read and change."""

    @property
    def question(self) -> str: ...

    @property
    def identity(self) -> str:
        """What makes the problem this problem; decides its split."""
        ...

    def copy(self) -> World: ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str: ...

    def grade(self, answer: str) -> Outcome: ...

    def show(self, rng: random.Random) -> Iterator[Message]:
        """The turns of an expert who knows the world; slips among them are not to be learned."""
        ...


def draw_world(config: AgentConfig, rng: random.Random) -> World:
    return rng.choice((draw_prices, draw_files))(config, rng)


def tool_call(name: str, **arguments: Any) -> str:
    """A call as the policy is to write it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def turn(text: str) -> Message:
    return Message(role="assistant", content=text)


def spoken(rng: random.Random, call: str, *deeds: str, seen: str = "") -> Message:
    """A call after what was seen, if anything was, and mostly a thought in varying words."""
    thought = "" if rng.random() < 0.2 else f"{rng.choice(STARTS)} {rng.choice(deeds)}{rng.choice(ENDS)}"
    said = " ".join(filter(None, (seen, thought)))
    return turn(f"{said}\n{call}" if said else call)


STARTS = ("I", "Now I", "Next I", "First I", "Let me", "We", "Time to")
ENDS = (".", ":", " now.", " here.")
FOUND = ("It has", "Here is", "This is", "I see")


def solved_if(right: bool) -> Outcome:
    return Outcome(reward=float(right), reason="solved" if right else "wrong answer")


# --- prices ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PriceWorld:
    """A price list that is asked one item at a time, and a calculator."""

    prices: Mapping[str, int]
    wanted: tuple[str, ...]
    difference: bool
    """Asked is the first price minus the second, instead of the sum of all."""

    @property
    def question(self) -> str:
        if self.difference:
            return f"How much more is {self.wanted[0]} than {self.wanted[1]}?"
        return f"What do {', '.join(self.wanted[:-1])} and {self.wanted[-1]} cost together?"

    @property
    def identity(self) -> str:
        return f"{self.question} {[self.prices[item] for item in self.wanted]}"

    @property
    def expression(self) -> str:
        return (" - " if self.difference else " + ").join(str(self.prices[item]) for item in self.wanted)

    @property
    def answer(self) -> int:
        return calculate(self.expression)

    def copy(self) -> World:
        return self

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        if name == "lookup":
            key = str(arguments.get("key"))
            return str(self.prices[key]) if key in self.prices else f"error: no {key}"
        if name == "calc":
            return calculator(str(arguments.get("expr")))
        return f"error: no tool {name} here"

    def grade(self, answer: str) -> Outcome:
        return solved_if(answer == str(self.answer))

    def show(self, rng: random.Random) -> Iterator[Message]:
        for item in self.wanted:
            call = tool_call("lookup", key=item)
            yield spoken(rng, call, f"look up {item}", f"ask for {item}", f"get the price of {item}", f"find {item}")
        if rng.random() < CALCULATED:
            yield spoken(
                rng,
                tool_call("calc", expr=self.expression),
                "calculate",
                "compute it",
                "work it out",
                "put them together",
            )
        closing = rng.choice(("", "That is it.\n", "I have the result.\n", "All prices are known.\n"))
        yield turn(f"{closing}Answer: {self.answer}")


def draw_prices(config: AgentConfig, rng: random.Random) -> PriceWorld:
    prices = {item: rng.randint(2, config.max_price) for item in ITEMS}
    wanted = rng.sample(ITEMS, rng.randint(config.min_items, config.max_items))
    difference = len(wanted) == 2 and rng.random() < 0.5
    if difference:
        wanted.sort(key=lambda item: -prices[item])
    return PriceWorld(prices, tuple(wanted), difference)


OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def calculator(expression: str) -> str:
    """The value of an expression, or a sentence that says why there is none."""
    try:
        return str(calculate(expression))
    except (SyntaxError, ValueError) as error:
        return f"error: {error.args[0]}"


def calculate(expression: str) -> int:
    """The value of sums, differences and products of whole numbers; ValueError or SyntaxError for anything else."""
    if len(expression) > MAX_EXPRESSION:
        raise ValueError("the expression is too long")
    return evaluate(ast.parse(expression, mode="eval").body)


def evaluate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right))
    raise ValueError("only whole numbers, +, - and * are known")


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileWorld:
    """A few settings files; one setting is to be changed, everything else is to stay."""

    files: dict[str, str]
    goal: Mapping[str, str]
    """The files as they are to be."""
    key: str
    value: str

    @property
    def question(self) -> str:
        return f"Set {self.key} to {self.value} and check."

    @property
    def identity(self) -> str:
        return f"{self.question} {sorted(self.files.items())}"

    def copy(self) -> World:
        return replace(self, files=dict(self.files))

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        path = str(arguments.get("path"))
        if name == "ls":
            return " ".join(self.files)
        if name == "check":
            return "ok" if self.files == self.goal else "failed"
        if name in ("read", "write") and path not in self.files:
            return f"error: no file {path}"
        if name == "read":
            return self.files[path]
        if name == "write":
            self.files[path] = str(arguments.get("text"))
            return "written"
        return f"error: no tool {name} here"

    def grade(self, answer: str) -> Outcome:
        return solved_if(answer == "done" and self.files == self.goal)

    def show(self, rng: random.Random) -> Iterator[Message]:
        yield spoken(rng, tool_call("ls"), "list the files", "look around", "see the files")
        order = rng.sample(list(self.files), len(self.files))
        wanted = next(path for path in order if self.files[path] != self.goal[path])
        seen = ""
        for path in order[: order.index(wanted) + 1]:
            call = tool_call("read", path=path)
            yield spoken(rng, call, f"read {path}", f"open {path}", f"look into {path}", "look inside", seen=seen)
            seen = self._found(rng, path)
        if rng.random() < SLIPS:
            yield replace(self._write(rng, wanted, self._wrong_value(rng, wanted), seen), is_learned=False)
            yield checked(rng)
            seen = ""
        yield self._write(rng, wanted, self.value, seen)
        yield checked(rng)
        yield turn("Answer: done")

    def _wrong_value(self, rng: random.Random, path: str) -> str:
        present = self.files[path].removeprefix(f"{self.key} = ")
        return rng.choice([one for one in SETTINGS[self.key] if one not in (present, self.value)])

    def _found(self, rng: random.Random, path: str) -> str:
        """What a file holds, and that it is the wrong one where it is."""
        present = self.files[path].partition(" = ")[0]
        found = f"{rng.choice(FOUND)} {present}"
        return f"{found}." if present == self.key else f"{found}, not {self.key}."

    def _write(self, rng: random.Random, path: str, value: str, seen: str) -> Message:
        call = tool_call("write", path=path, text=f"{self.key} = {value}")
        deeds = (f"set {self.key} to {value}", f"make {self.key} {value}", f"write {value}", "edit it")
        return spoken(rng, call, *deeds, seen=seen)


def checked(rng: random.Random) -> Message:
    return spoken(rng, tool_call("check"), "check", "run the check", "verify it")


def draw_files(config: AgentConfig, rng: random.Random) -> FileWorld:
    keys = rng.sample(list(SETTINGS), rng.randint(config.min_items, config.max_items))
    paths = rng.sample(PATHS, len(keys))
    values = {key: rng.choice(SETTINGS[key]) for key in keys}
    key = rng.choice(keys)
    value = rng.choice([one for one in SETTINGS[key] if one != values[key]])
    files = {path: f"{one} = {values[one]}" for path, one in zip(paths, keys, strict=True)}
    goal = {path: f"{key} = {value}" if text.startswith(f"{key} =") else text for path, text in files.items()}
    return FileWorld(files, goal, key, value)
