"""From pydantic's report to one sentence: where, which key, what was meant."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

KeyPath = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyOrigins:
    """Who wrote which key."""

    file: str
    """Name of the file, for messages."""
    lines: dict[KeyPath, int]
    """Path of a key -> its line in the file."""
    overrides: dict[KeyPath, str]
    """Path of a key -> the override that set it."""

    def of(self, path: KeyPath) -> str:
        """The override, or file and line, that wrote ``path``, the section around it, or alone something in it."""
        for depth in range(len(path), 0, -1):
            prefix = path[:depth]
            if prefix in self.overrides:
                return f"override {self.overrides[prefix]!r}"
            if prefix in self.lines:
                return f"{self.file}, line {self.lines[prefix]}"
        below = [override for key, override in self.overrides.items() if key[: len(path)] == path]
        return f"override {below[0]!r}" if len(below) == 1 else self.file


def explain(error: ValidationError, model: type[BaseModel], origins: KeyOrigins) -> str:
    """One sentence about the first problem, and how many more there are."""
    # A misspelt key also leaves the right one missing: the spelling is what the person must see.
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = tuple(str(part) for part in first["loc"])
    sentence = f"{origins.of(path)}: {_describe(first, path, model)}"
    return sentence if len(problems) == 1 else f"{sentence} (and {len(problems) - 1} more)"


def _describe(problem: Any, path: KeyPath, model: type[BaseModel]) -> str:
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; {_remedy(path, model)}"
    if problem["type"] == "missing":
        return f"{key} is missing; set it in the file or as {key}=VALUE"
    if problem["type"] == "model_type":
        return f"{key} is a section of keys, got {problem['input']!r}"
    cause = problem.get("ctx", {}).get("error")
    message = str(cause) if isinstance(cause, ValueError) else problem["msg"]
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = message.replace("Input should", "should").removesuffix(".")
    return f"{key} {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _remedy(path: KeyPath, model: type[BaseModel]) -> str:
    """Name the nearest right key: a sibling first, then the same name elsewhere, then a similar one elsewhere."""
    known = list(_paths(model))
    siblings = [known_path for known_path in known if known_path[:-1] == path[:-1]]
    names = {sibling[-1]: sibling for sibling in siblings}
    near = difflib.get_close_matches(path[-1], names, n=1)
    if near:
        return f"did you mean {'.'.join(names[near[0]])}?"
    # Of keys that are called alike, the first of the outermost.
    elsewhere = {known_path[-1]: known_path for known_path in sorted(reversed(known), key=len, reverse=True)}
    near = difflib.get_close_matches(path[-1], elsewhere, n=1, cutoff=0.75)
    if near:
        return f"did you mean {'.'.join(elsewhere[near[0]])}?"
    if names:
        return f"the keys here are {', '.join(sorted(names))}"
    return "there are no keys below " + (".".join(path[:-1]) or "this config")


def _paths(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        yield (*prefix, name)
        for section in _sections(field.annotation):
            yield from _paths(section, (*prefix, name))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models an annotation holds: itself, or the members of a union or container."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _sections(part)
