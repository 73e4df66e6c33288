"""`bebop quickstart`: everything the project does, on this machine, in minutes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from bebop.cli.stage import ConsoleStage
from bebop.models.names import is_checkpoint, output_path
from bebop.quickstart.perform import perform
from bebop.quickstart.plan import commands, plan, scale_of


def command(
    policy: Annotated[str, typer.Option(help="tiny (shipped) or smollm2-sft (a real language model).")] = "tiny",
    run: Annotated[Path | None, typer.Option(help="Directory of everything it makes.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands it would run and leave.")] = False,
) -> None:
    """Train two heads, compare them, run RL with and without them, and write a report of it all.

    Interrupted, the same command goes on in the act where it was.

    Example: bebop quickstart --run runs/quickstart
    """
    scale = scale_of(policy)
    directory = run or Path("runs") / f"quickstart-{scale.policy}"
    policy_path = output_path(scale.policy)
    made = policy_path if is_checkpoint(policy_path) else None
    acts = plan(scale, directory, made)
    if dry_run:
        print("\n".join(commands(acts, directory)))
        return
    console = Console()
    minutes = scale.total_minutes(made)
    console.print(f"{len(acts)} acts, about {minutes} minutes on two cores, kept in {directory}", highlight=False)
    stage = ConsoleStage(acts, console)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        perform(acts, directory, stage)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; `bebop quickstart --policy {policy} --run {directory}` goes on from here")
        raise
    finally:
        stage.close()


def interrupt(number: int, frame: object) -> NoReturn:
    """Be ended like by Ctrl-C: what runs is stopped first."""
    raise KeyboardInterrupt
