"""``bebop doctor``: what is installed, what works here, how to get what is missing."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bebop.cli.diagnosis import Check, Status, diagnose

_MARKS = {Status.OK: "[green]ok[/green]", Status.OPTIONAL: "[yellow]--[/yellow]", Status.BROKEN: "[red]!![/red]"}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the checks as JSON, for programs and bug reports.")
    ] = False,
) -> None:
    """Say what is installed, what works on this machine, and how to get what is missing.

    Exit code 1 where something without which nothing works is missing, else 0.

    Example: [bold]bebop doctor --json > doctor.json[/bold]
    """
    checks = diagnose()
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print(checks, Console(soft_wrap=False))
    if any(check.status is Status.BROKEN for check in checks):
        raise typer.Exit(1)


def _print(checks: Sequence[Check], console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("mark", "name", "found"):
        table.add_column(column, no_wrap=column != "found", overflow="fold")
    for group, members in groupby(checks, key=lambda check: check.group):
        table.add_row("", f"[bold]{group}[/bold]", "")
        for check in members:
            table.add_row(_MARKS[check.status], check.name, escape(check.found))
            if check.advice:
                table.add_row("", "", f"[dim]-> {escape(check.advice)}[/dim]")
    console.print(table)
