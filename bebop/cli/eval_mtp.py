"""`bebop eval-mtp POLICY`: how many drafts of the head are accepted, per task and verification rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bebop.cli.counting import ticker
from bebop.cli.devices import default_device
from bebop.cli.progress import progress
from bebop.core.sampling import Sampling
from bebop.engines.embedded.rules import rule_named
from bebop.errors import UserError
from bebop.models.policy import Policy, load_policy, recommended_dtype
from bebop.tasks.base import Split
from bebop.tasks.evaluation import plans
from bebop.tasks.registry import load_task
from bebop.training.acceptance_report import TaskResult, evaluate_task
from bebop.training.bootstrap import Figure
from bebop.training.calibration import TEMPERATURES
from bebop.training.mtp_eval import EvalSettings
from bebop.training.teacher_forced import FATES, Questions


def command(
    policy: Annotated[str, typer.Argument(help="Name or directory of a policy with a head.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, with commas.")] = "math,code,agent",
    rules: Annotated[str, typer.Option(help="Verification rules, with commas.")] = ",".join(FATES),
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the sampling.")] = 1.0,
    k: Annotated[int, typer.Option("--k", min=1, max=16, help="Draft tokens a round.")] = 3,
    problems: Annotated[int, typer.Option(min=2, help="Problems of each task.")] = 100,
    split: Annotated[Split, typer.Option(help="Which problems.")] = Split.HELDOUT,
    calibrate: Annotated[bool, typer.Option(help="Also find the best draft temperature of each depth.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Episodes played at once.")] = 32,
    max_turn_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a turn is cut off.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the tasks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure acceptance, played and estimated, with 95% bootstrap intervals over episodes.

    Example: bebop eval-mtp tiny --tasks math,agent --rules rejection,target_only --problems 200
    """
    names = chosen_rules(rules)
    sampling = Sampling(temperature=temperature)
    questions = Questions(sampling=sampling, rules=names, draft_temperatures=TEMPERATURES if calibrate else ())
    settings = EvalSettings(questions=questions, num_drafts=k, rows=rows, max_turn_tokens=max_turn_tokens)
    loaded = open_policy(policy)
    chosen = [load_task(name, seed) for name in tasks.split(",")]
    results = []
    with progress("eval-mtp", len(chosen) * len(names) * problems) as show:
        tick = ticker(show, "episodes")
        for task in chosen:
            results.append(
                evaluate_task(loaded, task.name, list(plans([task], split, range(problems))), settings, tick)
            )
    if as_json:
        about = {"policy": policy, "temperature": temperature, "k": k, "split": split.value, "seed": seed}
        print(json.dumps({**about, "tasks": [asdict(one) for one in results]}, indent=2))
    else:
        Console().print(table(results, names))


def chosen_rules(rules: str) -> list[str]:
    names = rules.split(",")
    for name in names:
        rule_named(name)
    return names


def open_policy(name: str) -> Policy:
    device = default_device()
    policy = load_policy(name, dtype=recommended_dtype(device), device=device)
    if policy.head is None:
        raise UserError(f"the policy {name} has no MTP head to evaluate; train one with `bebop train-mtp`")
    if policy.tokenizer is None:
        raise UserError(f"the policy {name} has no tokenizer; add its tokenizer.json to the directory")
    return policy


def table(results: Sequence[TaskResult], rules: Sequence[str]) -> Table:
    grid = Table("task", "rule", "acceptance rate", "accept length", "expected", "acceptance given the depths before")
    for one in results:
        for rule in rules:
            conditional = (figure for name, figure in one.figures.items() if name.startswith(f"{rule}/conditional@"))
            grid.add_row(
                one.task,
                rule,
                spelled(one.figures[f"{rule}/acceptance_rate"], "{:.1%}"),
                spelled(one.figures[f"{rule}/accept_length"], "{:.2f}"),
                f"{one.figures[f'{rule}/estimated_round_length'].value:.2f}",
                " ".join(f"{figure.value:.1%}" for figure in conditional),
            )
    return grid


def spelled(figure: Figure, form: str) -> str:
    return f"{form.format(figure.value)} ({form.format(figure.low)} to {form.format(figure.high)})"
