"""Arguments that commands with a configuration share: CONFIG, overrides, ``--dry-run``."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from bebop.config import ConfigModel, load_config, to_yaml

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, such as one under configs/.", show_default=False)
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, such as optimiser.lr=1e-4.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and leave.")]

Model = TypeVar("Model", bound=ConfigModel)


def resolve(model: type[Model], path: Path | None, overrides: list[str] | None, *, dry_run: bool) -> Model:
    """The configuration a command runs with; with ``dry_run`` it is printed as YAML and the command ends."""
    config = load_config(model, path, overrides or ())
    if dry_run:
        typer.echo(to_yaml(config), nl=False)
        raise typer.Exit
    return config
