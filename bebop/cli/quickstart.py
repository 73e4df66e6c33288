"""`bebop quickstart`: everything the project does, on this machine, in minutes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from bebop.cli.stage import ConsoleStage
from bebop.errors import UserError
from bebop.models.loading import check_head, load_tokenizer
from bebop.models.names import is_checkpoint, output_path
from bebop.models.spec import check_backbone, read_spec
from bebop.quickstart.perform import perform
from bebop.quickstart.plan import SCALES, Scale, commands, own_scale, plan
from bebop.tasks.chat import chat_of


def command(
    policy: Annotated[
        str, typer.Option(help="tiny (shipped), smollm2-sft (a real language model), or your checkpoint's directory.")
    ] = "tiny",
    run: Annotated[Path | None, typer.Option(help="Directory of everything it makes.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands it would run and leave.")] = False,
) -> None:
    """Train two heads, compare them, run RL with and without them, and write a report of it all.

    Interrupted, the same command goes on in the act where it was.

    Example: bebop quickstart --run runs/quickstart
    """
    scale = scale_of(policy)
    directory = run or Path("runs") / f"quickstart-{Path(scale.policy).name}"
    policy_path = output_path(scale.policy)
    made = policy_path if is_checkpoint(policy_path) else None
    acts = plan(scale, directory, made)
    if dry_run:
        print("\n".join(commands(acts, directory)))
        return
    console = Console()
    console.print(f"{len(acts)} acts, {scale.duration(made)}, kept in {directory}", highlight=False)
    stage = ConsoleStage(acts, console)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        perform(acts, directory, stage)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; `bebop quickstart --policy {policy} --run {directory}` goes on from here")
        raise
    finally:
        stage.close()


def scale_of(policy: str) -> Scale:
    """The budget of a policy; UserError where there is none of that name and no checkpoint."""
    if policy in SCALES:
        return SCALES[policy]
    if not is_checkpoint(Path(policy)):
        raise UserError(f"there is no policy {policy!r}; choose one of {', '.join(SCALES)} or a checkpoint's directory")
    spec = read_spec(Path(policy))
    check_backbone(spec)
    tokenizer = load_tokenizer(spec.directory, spec.config)
    thinks = chat_of(tokenizer).opens_thought
    if thinks:
        chat_of(tokenizer, thinking=False)
    return own_scale(policy, has_head=check_head(spec) is not None, stops_thinking=thinks)


def interrupt(number: int, frame: object) -> NoReturn:
    """Be ended like by Ctrl-C: what runs is stopped first."""
    raise KeyboardInterrupt
