"""How commands are told to sample."""

from __future__ import annotations

from typing import Annotated

import typer

from bebop.core.sampling import Sampling
from bebop.errors import UserError

TemperatureOption = Annotated[float, typer.Option(help="Of the sampling; 0 is greedy.")]
ThinkingOption = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="Think before answering, where the chat template has a switch.",
        show_default="as the template has it",
    ),
]


def sampling_at(temperature: float) -> Sampling:
    """The whole vocabulary at a temperature; UserError where it is none."""
    try:
        return Sampling(temperature=temperature)
    except ValueError as error:
        raise UserError(str(error)) from error
