"""Whether what a document shows exists: commands, links and names, each check as a generator of problems.

Nothing that is shown is run: commands are parsed with their functions taken out, and those with a configuration
resolve it as ``--dry-run`` does.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import ROOT, Document, Words

from bebop.cli.main import build_app
from bebop.errors import UserError

DOTTED = re.compile(r"\bbebop(?:\.[A-Za-z_]\w*)+")
FILE_SUFFIXES = (".json", ".yaml", ".toml", ".md")
PATH = re.compile(r"(?:bebop|tests|configs|docs|scripts)/[\w./-]*(?:::[\w:]+)?")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_.]*|<.*>|\.\.\.")


# Commands.


def wrong_commands(document: Document) -> Iterator[str]:
    for words in document.commands():
        yield from (f"{' '.join(words)}: {problem}" for problem in problems_of(words))
    for words in document.mentioned_commands():
        yield from (f"{' '.join(words)}: {problem}" for problem in problems_of(words, mentioned=True))


def problems_of(words: Words, *, mentioned: bool = False) -> Iterator[str]:
    """``mentioned``: in running text, where arguments are left out."""
    program, rest = Path(words[0]).name, words[1:]
    if words[0].startswith("scripts/"):
        yield from [] if os.access(ROOT / words[0], os.X_OK) else ["there is no such script"]
    elif program == "make":
        yield from problems_of_make(rest)
    elif program == "pip" or rest[:2] == ["-m", "pip"]:
        yield from problems_of_pip(rest)
    elif program == "bebop" or rest[:2] == ["-m", "bebop"]:
        words = rest if program == "bebop" else rest[2:]
        yield from mentioned_options(words) if mentioned else parsed(words)
    elif rest[:1] == ["-m"]:
        yield from problems_of_module(rest[1], rest[2:])


def problems_of_make(words: Words) -> Iterator[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", text, re.MULTILINE))
    for word in words:
        name, is_setting, _ = word.partition("=")
        if not word.startswith("-") and name not in (variables if is_setting else targets):
            yield f"the Makefile has no {name}"


def problems_of_pip(words: Words) -> Iterator[str]:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:^| )(?:bebop-rl|\.)\[([\w,]+)\]", " ".join(words)):
        yield from (f"there is no extra {name}" for name in extras.split(",") if name not in known)


def problems_of_module(name: str, words: Words) -> Iterator[str]:
    if name == "pytest":
        paths = (word.partition("::")[0] for word in words if word.startswith("tests/"))
        yield from (f"there is no {path}" for path in paths if not (ROOT / path).exists())
    elif name.startswith("bebop."):
        if not is_module(name):
            yield f"there is no module {name}"
        elif hasattr(module := importlib.import_module(name), "argparse"):
            yield from parsed_by_argparse(module.main, words)


class Parsed(BaseException):
    """The arguments were understood; what they ask for is not done."""


def parsed_by_argparse(main: Callable[[Words], None], words: Words) -> Iterator[str]:
    original = argparse.ArgumentParser.parse_args

    def stop_after(self: argparse.ArgumentParser, *arguments: Any) -> None:
        original(self, *arguments)
        raise Parsed

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_after)
        try:
            main(words)
        except Parsed:
            return
        except SystemExit:
            yield said.getvalue()


def parsed(words: Words) -> Iterator[str]:
    """What `bebop` itself says of the words, short of doing what they ask."""
    group = command_group(words)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            disarmed(group).main(words, prog_name="bebop")
        except SystemExit as end:
            if end.code != 0:
                yield " ".join(said.getvalue().split())
        except UserError as error:
            yield str(error)


def command_group(words: Words) -> Any:
    name = next((word for word in words if not word.startswith("-")), None)
    return typer.main.get_command(build_app(name))


def disarmed(command: Any) -> Any:
    """The command with every function taken out; those with a configuration print it and leave."""
    for below in getattr(command, "commands", {}).values():
        disarmed(below)
    function = command.callback
    if any(parameter.name == "dry_run" for parameter in command.params):
        command.callback = lambda **given: function(**{**given, "dry_run": True})
    elif function is not None:
        command.callback = lambda **_: None
    return command


def mentioned_options(words: Words) -> Iterator[str]:
    """Unknown sub-commands and options, whatever else is left out."""
    command = command_group(words)
    for word in words:
        below = getattr(command, "commands", None)
        if word.startswith("-"):
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            yield from [] if word in known | {"--help"} else [f"there is no option {word}"]
        elif below is not None and not PLACEHOLDER.fullmatch(word):
            if word not in below:
                yield f"there is no command {word}"
                return
            command = below[word]


# Links and names.


def dead_links(document: Document) -> Iterator[str]:
    for link in document.links():
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (document.path.parent / target).resolve() if target else document.path
        if target and not path.exists():
            yield f"{link}: there is no such file"
        elif anchor and anchor not in (Document.read(path) if target else document).anchors():
            yield f"{link}: there is no such heading"


def unknown_names(document: Document) -> Iterator[str]:
    python = [fence.text for fence in document.fences() if fence.language == "python"]
    for span in [*document.spans(), *python]:
        for name in DOTTED.findall(span):
            if not name.endswith(FILE_SUFFIXES) and not is_name(name):
                yield f"there is no {name}"
        if PATH.fullmatch(span) and not is_path(span):
            yield f"there is no {span}"
        if re.fullmatch(r"test_\w+", span) and not any(span in names for names in tests_by_file().values()):
            yield f"there is no test {span}"
    for text in python:
        yield from (f"there is no {name}" for name in imported_names(text) if not is_name(name))


def imported_names(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bebop"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_name(dotted: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one; fields of records count."""
    parts = dotted.split(".")
    length = next(length for length in range(len(parts), 0, -1) if is_module(".".join(parts[:length])))
    if length == len(parts):
        return True
    return has_path(importlib.import_module(".".join(parts[:length])), parts[length:])


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what stands before the last dot is no package
        return False


def has_path(value: Any, names: Words) -> bool:
    for name in names:
        fields = {field for one in getattr(value, "__mro__", ()) for field in getattr(one, "__annotations__", ())}
        if not hasattr(value, name):
            return name in fields
        value = getattr(value, name)
    return True


def is_path(text: str) -> bool:
    path, _, names = text.partition("::")
    return (ROOT / path).exists() and (not names or names in tests_by_file().get(path, ()))


@cache
def tests_by_file() -> dict[str, set[str]]:
    """Test file -> the functions in it."""
    return {
        path.relative_to(ROOT).as_posix(): set(re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
        for path in (ROOT / "tests").rglob("test_*.py")
    }


Check = Callable[[Document], Iterator[str]]
CHECKS: tuple[Check, ...] = (wrong_commands, dead_links, unknown_names)
