"""`bebop report RUN...`: one page that shows what runs did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bebop.errors import UserError
from bebop.report.analysis import Estimate
from bebop.report.evaluations import read_evaluation
from bebop.report.headlines import Number
from bebop.report.write import Findings, ReportOptions, write_report


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Directories of `bebop train-rl` and `bebop train-mtp`, files of `bebop eval-mtp --json`.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Directory to write the charts to as PNG.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Run that speeds are measured against.")] = None,
    refitted: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN=VALUE",
            help="Accept length of a head refitted on RUN's final policy: a number or an eval-mtp file.",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write one HTML file with figures, intervals and transcripts of finished or running runs, side by side.

    The file needs no network and no other file. What a run did not log is named on the page.

    Example: bebop report runs/no-mtp runs/frozen runs/head heads/e2e_tv.json --out report.html --figures figures
    """
    if out.is_dir():
        raise UserError(f"{out} is a directory; give the file to write, such as --out {out}/report.html")
    options = ReportOptions(
        title=title, figures=figures, baseline=baseline, refitted=dict(refitted_length(one) for one in refitted or [])
    )
    findings = write_report(runs, out, options)
    Console().print(summary(findings))
    where = f", its figures ({findings.num_figures}) in {figures}" if figures else ""
    print(f"the report is in {out}{where}")


def refitted_length(text: str) -> tuple[str, Estimate]:
    """``RUN=2.9`` or ``RUN=eval.json``, whose accept length over all tasks is taken, of its first rule."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"--refitted {text!r} is not of the form RUN=VALUE, such as frozen=2.9 or frozen=eval.json")
    try:
        return name, Estimate(value=float(value))
    except ValueError:
        evaluation = read_evaluation(Path(value))
    rules = evaluation.rules
    length = evaluation.pooled(f"{rules[0]}/accept_length") if rules else None
    if length is None:
        raise UserError(f"{value} has no accept length; evaluate the head with `bebop eval-mtp --json`")
    return name, Estimate(value=length)


def summary(findings: Findings) -> Group:
    """The headline numbers, a column per run."""
    fullest_first = sorted(findings.cards, key=lambda card: -len(card.numbers))
    labels = list(dict.fromkeys(number.label for card in fullest_first for number in card.numbers))
    told = [{number.label: number for number in card.numbers} for card in findings.cards]
    table = Table("", *(escape(card.name) for card in findings.cards))
    for label in labels:
        table.add_row(label, *(spelled(numbers.get(label)) for numbers in told))
    missing = [Text(f"not shown: {one.title}: {one.reason}", style="dim") for one in findings.missing]
    return Group(Text(findings.verdict), *([table] if findings.cards else []), *missing)


def spelled(number: Number | None) -> str:
    """With its interval below it."""
    if number is None:
        return ""
    return "\n".join(
        filter(None, [escape(number.text), f"[dim]{escape(number.interval)}[/dim]" if number.interval else ""])
    )
