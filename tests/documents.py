"""Markdown taken apart: the commands, links, names and tables that a document shows."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]

Words = list[str]

FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```\s*?$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
OPERATORS = {"&&", "||", "|", ";", "&"}
REDIRECTION = re.compile(r"\d?>>?|<")
# What a line or a span of shell begins with; everything else is output, a layout or another language.
SHELL = re.compile(r"(?:\w+=\S+ +)*(?:(?:\S+/)?(?:bebop|make|pip|python3?)(?= |$)|scripts/\S+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fence:
    """A fenced block."""

    info: str
    """What follows the opening back-ticks."""
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A Markdown text and where it stands; its relative links start there."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> "Document":
        return cls(path=path, text=path.read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name

    def fences(self) -> Iterator[Fence]:
        for _, info, text in FENCE.findall(self.text):
            yield Fence(info=info.strip(), text=text)

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return FENCE.sub("", self.text)

    def spans(self) -> Iterator[str]:
        """Code within the prose, white space made one blank."""
        for span in SPAN.findall(self.prose):
            yield " ".join(span.split())

    def links(self) -> Iterator[str]:
        for inline, reference in LINK.findall(SPAN.sub("code", self.prose)):
            yield inline or reference

    def anchors(self) -> set[str]:
        """What ``#...`` may name: the headings as GitHub spells them."""
        return {slug(heading) for heading in HEADING.findall(self.prose)}

    def commands(self) -> Iterator[Words]:
        """Commands of fenced blocks, whole: they can be typed as they stand."""
        for fence in self.fences():
            if fence.language in ("", "sh", "bash", "shell", "console"):
                yield from shell_commands(fence.text)

    def mentioned_commands(self) -> Iterator[Words]:
        """Commands within the prose, whose arguments may be left out."""
        for span in self.spans():
            if SHELL.match(span):
                yield from shell_commands(span)

    def table(self, first_column: str) -> list[Words]:
        """The rows of the table whose first column has this title, cells without back-ticks."""
        lines = dropwhile(lambda line: cells(line)[:1] != [first_column], self.prose.splitlines())
        return [cells(line) for line in takewhile(lambda line: line.startswith("|"), lines)][2:]


def cells(row: str) -> Words:
    return [cell.strip().replace("`", "") for cell in row.strip("| ").split("|")]


def slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def shell_commands(text: str) -> Iterator[Words]:
    """Simple commands of a script, without environment settings, comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if SHELL.match(line):
            yield from simple_commands(shlex.split(line, comments=True))


def simple_commands(words: Words) -> Iterator[Words]:
    """A line cut at its operators."""
    command: Words = []
    for word in [*words, ";"]:
        if word in OPERATORS:
            command = without_redirections(command)
            while command and ASSIGNMENT.match(command[0]):
                command = command[1:]
            if command:
                yield command
            command = []
        else:
            command.append(word)


def without_redirections(words: Words) -> Words:
    """The words before the first ``>`` or ``<``; a placeholder such as ``<index>`` is none."""
    for place, word in enumerate(words):
        if REDIRECTION.fullmatch(word):
            return words[:place]
    return words
