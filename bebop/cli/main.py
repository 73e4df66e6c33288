"""The command ``bebop``: a table of commands, of which only the one asked for is imported.

Help must appear at once, and importing PyTorch takes seconds. So ``run`` looks at the command line, imports the command
named there, and mounts the others by name and summary alone.
"""

import errno
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

import bebop
from bebop.errors import UserError

_MACHINE_ERRORS = frozenset({errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT})


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One row of the table."""

    name: str
    target: str
    """``module:attribute``; a ``typer.Typer`` with sub-commands, or the function of a plain command."""
    summary: str
    """What ``bebop --help`` says of it."""
    panel: str
    """Heading under which it is listed."""


COMMANDS = (
    Command(
        name="doctor",
        target="bebop.cli.doctor:doctor",
        summary="Say what is installed, what works here, and how to get what is missing.",
        panel="Start here",
    ),
    Command(
        name="quickstart",
        target="bebop.cli.quickstart:command",
        summary="See it all on this machine: heads, acceptance, RL with and without them, a report.",
        panel="Start here",
    ),
    Command(
        name="bench",
        target="bebop.cli.bench:bench_app",
        summary="Time decoding, learning and the head's loss on this machine.",
        panel="Start here",
    ),
    Command(
        name="plan",
        target="bebop.cli.plan:command",
        summary="Predict what drafting would gain, before anything is spent on it.",
        panel="Start here",
    ),
    Command(
        name="report",
        target="bebop.cli.report:command",
        summary="Show what runs did, side by side, in one HTML file.",
        panel="Start here",
    ),
    Command(
        name="policy",
        target="bebop.cli.policy:policy_app",
        summary="Look into a checkpoint (show), give it a head (stitch) or a draft vocabulary.",
        panel="Policies",
    ),
    Command(
        name="train-sft",
        target="bebop.cli.train_sft:command",
        summary="Tune a policy on worked transcripts.",
        panel="Policies",
    ),
    Command(
        name="train-mtp",
        target="bebop.cli.train_mtp:command",
        summary="Train a policy's MTP head so that its drafts are accepted.",
        panel="Policies",
    ),
    Command(
        name="train-rl",
        target="bebop.cli.train_rl:command",
        summary="Train a policy by GRPO on rollouts that its head drafts.",
        panel="Policies",
    ),
    Command(
        name="eval-policy",
        target="bebop.cli.eval_policy:command",
        summary="Measure a policy's reward and entropy on tasks.",
        panel="Policies",
    ),
    Command(
        name="eval-mtp",
        target="bebop.cli.eval_mtp:command",
        summary="Measure how many drafts of the head are accepted, per task and rule.",
        panel="Policies",
    ),
    Command(
        name="audit",
        target="bebop.cli.audit:command",
        summary="Test whether an engine samples exactly from the policy while it speculates.",
        panel="Engines",
    ),
    Command(
        name="recipe",
        target="bebop.cli.recipe:command",
        summary="Print the options that make another framework roll out with a trained head.",
        panel="Engines",
    ),
)

_HELP = """RL post-training whose rollouts are drafted by a frozen MTP head and verified exactly.

Example: [bold]bebop doctor[/bold]. Every command says more, with an example: [bold]bebop COMMAND --help[/bold].
"""


def build_app(selected: str | None, commands: Sequence[Command] = COMMANDS) -> typer.Typer:
    """The application, with ``selected`` imported and the other commands listed only."""
    app = typer.Typer(
        name="bebop", help=_HELP, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
    )
    app.callback()(_options)
    for command in commands:
        _mount(app, command, _load(command) if command.name == selected else _unloaded)
    return app


def run(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 1 (a check or a run failed), 2 (a mistake to mend), 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app = build_app(next((word for word in words if not word.startswith("-")), None))
        app(words, prog_name="bebop")
    except UserError as error:
        _stop(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"error: {place}{error.strerror}", 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except SystemExit as stop:
        if stop.code == 130:
            _stop("interrupted", 130)
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bebop {bebop.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """The options of `bebop` itself; each acts in its own callback."""


def _mount(app: typer.Typer, command: Command, target: typer.Typer | Callable[..., None]) -> None:
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=command.name, short_help=command.summary, rich_help_panel=command.panel)
    else:
        app.command(command.name, short_help=command.summary, rich_help_panel=command.panel)(target)


def _load(command: Command) -> typer.Typer | Callable[..., None]:
    module, _, attribute = command.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unloaded() -> None:
    raise AssertionError("only the selected command is called")


def _stop(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)
