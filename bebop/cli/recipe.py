"""`bebop recipe FRAMEWORK`: the options that make another framework roll out with a trained head."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from bebop.recipes.record import Recipe
from bebop.recipes.registry import RECIPES, make_recipe


def command(
    framework: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")],
    policy: Annotated[str, typer.Option(help="The policy with its trained head: a directory or a name.")],
    k: Annotated[int, typer.Option("--k", min=1, max=16, help="Draft tokens a round.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print what to configure, what its acceptance figures mean, and what is known to go wrong.

    The head stays frozen, drafts are sampled from it, and rejection sampling verifies them. Exit code 1 where the
    framework cannot do that.

    Example: [bold]bebop recipe vllm --policy tiny[/bold]
    """
    recipe = make_recipe(framework, policy, k)
    if as_json:
        typer.echo(json.dumps(asdict(recipe), indent=2))
    else:
        _print(recipe, Console(soft_wrap=True, highlight=False))
    if recipe.refusal:
        raise typer.Exit(1)


def _print(recipe: Recipe, console: Console) -> None:
    head = recipe.head
    console.print(
        f"[bold]{recipe.framework}[/bold], options as of {recipe.checked}: a frozen {head['contract']} head, method "
        f"{head['method']}, {head['num_draft_tokens']} drafts a round"
    )
    if recipe.refusal:
        console.print(f"[red]{escape(recipe.refusal)}[/red]")
    for block in recipe.blocks:
        console.print(f"\n[bold]{escape(block.title)}[/bold]")
        console.print(block.text, markup=False)
    if recipe.metrics:
        console.print("\n[bold]Its figures in Bebop's words[/bold]")
    for metric in recipe.metrics:
        note = f"  ({metric.note})" if metric.note else ""
        console.print(f"  {metric.theirs} = {metric.ours or 'no figure of ours'}{note}", markup=False)
    console.print("\n[bold]Known to go wrong[/bold]")
    for caveat in recipe.caveats:
        console.print(f"  - {caveat.text} [{caveat.source}]", markup=False)
