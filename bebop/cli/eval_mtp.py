"""`bebop eval-mtp POLICY`: how many drafts of the head are accepted, per task and verification rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from bebop.cli.acceptance_tables import acceptance_table, calibration_table, heads_table, laws_table
from bebop.cli.counting import ticker
from bebop.cli.devices import default_device
from bebop.cli.progress import progress
from bebop.cli.sampling import TemperatureOption, ThinkingOption, sampling_at
from bebop.cli.task_choice import TasksOption, chosen_tasks
from bebop.engines.embedded.rules import rule_named
from bebop.errors import UserError
from bebop.models.policy import Policy, load_policy, recommended_dtype
from bebop.tasks.base import Split
from bebop.tasks.chat import chat_of
from bebop.tasks.evaluation import plans
from bebop.training.acceptance_report import TaskResult, check_same_target, evaluate_task
from bebop.training.calibration import TEMPERATURES
from bebop.training.mtp_eval import EvalSettings
from bebop.training.teacher_forced import FATES, Questions


def command(
    policy: Annotated[str, typer.Argument(help="Name or directory of a policy with a head.")],
    tasks: TasksOption = "math,code,agent",
    rules: Annotated[str, typer.Option(help="Verification rules, with commas.")] = ",".join(FATES),
    temperature: TemperatureOption = 1.0,
    k: Annotated[int, typer.Option("--k", min=1, max=16, help="Draft tokens a round.")] = 3,
    problems: Annotated[int, typer.Option(min=2, help="Problems of each task.")] = 100,
    split: Annotated[Split, typer.Option(help="Which problems.")] = Split.HELDOUT,
    against: Annotated[
        list[str] | None, typer.Option(help="The same policy with another head, to compare with; may be repeated.")
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Also find the best draft temperature of each depth.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Episodes played at once.")] = 32,
    max_turn_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a turn is cut off.")] = 256,
    thinking: ThinkingOption = None,
    seed: Annotated[int, typer.Option(help="Of the tasks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure acceptance, played and estimated, with 95% bootstrap intervals over episodes.

    Heads given with --against are judged along the same rollouts, which tells small differences from chance.

    Example: bebop eval-mtp tiny --tasks math,agent --rules rejection,target_only --problems 200
    """
    names = chosen_rules(rules)
    sampling = sampling_at(temperature)
    questions = Questions(sampling=sampling, rules=names, draft_temperatures=TEMPERATURES if calibrate else ())
    settings = EvalSettings(
        questions=questions, num_drafts=k, rows=rows, max_turn_tokens=max_turn_tokens, thinking=thinking
    )
    chosen = chosen_tasks(tasks, seed)
    loaded, others = open_policy(policy), {name: open_policy(name) for name in against or ()}
    chat_of(loaded.tokenizer, thinking)
    check_same_target(loaded, others)
    results = []
    with progress("eval-mtp", len(chosen) * len(names) * problems) as show:
        tick = ticker(show, "episodes")
        for task in chosen:
            wanted = list(plans([task], split, range(problems)))
            results.append(evaluate_task(loaded, task.name, wanted, settings, tick, others))
    if as_json:
        about = {"policy": policy, "temperature": temperature, "k": k, "split": split.value, "seed": seed}
        print(json.dumps({**about, "tasks": [asdict(one) for one in results]}, indent=2))
    else:
        show_tables(results, names)


def show_tables(results: Sequence[TaskResult], rules: Sequence[str]) -> None:
    console = Console()
    console.print(acceptance_table(results, rules))
    console.print(laws_table(results))
    if any(one.others for one in results):
        console.print(heads_table(results, rules))
    if any(one.draft_temperatures for one in results):
        console.print(calibration_table(results))


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
    return policy
