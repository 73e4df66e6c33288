"""`bebop eval-policy POLICY`: reward and entropy per task, sampled by the embedded engine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bebop.cli.devices import default_device
from bebop.cli.progress import progress
from bebop.cli.sampling import TemperatureOption, ThinkingOption, sampling_at
from bebop.cli.task_choice import TasksOption, chosen_tasks
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.models.policy import load_policy, recommended_dtype
from bebop.tasks.base import Split
from bebop.tasks.chat import chat_of
from bebop.tasks.episodes import EpisodeSettings, run_episodes
from bebop.tasks.evaluation import TaskScore, plans, score


def command(
    policy: Annotated[str, typer.Argument(help="Name or directory of a policy.")],
    tasks: TasksOption = "math,code,agent",
    problems: Annotated[int, typer.Option(min=1, help="Problems of each task.")] = 100,
    split: Annotated[Split, typer.Option(help="Which problems.")] = Split.HELDOUT,
    temperature: TemperatureOption = 1.0,
    draft: Annotated[int, typer.Option(min=0, help="Draft tokens a round; 0 samples without the head.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Episodes played at once.")] = 32,
    max_turn_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a turn is cut off.")] = 256,
    thinking: ThinkingOption = None,
    seed: Annotated[int, typer.Option(help="Of the tasks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Play episodes of the tasks and report reward, entropy and how they ended.

    Example: bebop eval-policy tiny --tasks math,agent --problems 200
    """
    settings = EpisodeSettings(sampling=sampling_at(temperature), max_turn_tokens=max_turn_tokens)
    chosen = chosen_tasks(tasks, seed)
    device = default_device()
    loaded = load_policy(policy, dtype=recommended_dtype(device), device=device, head="auto" if draft else "none")
    chat = chat_of(loaded.tokenizer, thinking)
    engine = EmbeddedEngine(loaded, EmbeddedOptions(max_rows=rows, num_draft_tokens=draft))
    wanted = list(plans(chosen, split, range(problems)))
    rollouts = []
    with torch.inference_mode(), progress("eval-policy", len(wanted)) as show:
        for rollout in run_episodes(engine, chat, wanted, settings):
            rollouts.append(rollout)
            show(len(rollouts), f"mean reward {sum(one.outcome.reward for one in rollouts) / len(rollouts):.3f}")
    scores = [score(task.name, rollouts) for task in chosen]
    print(json.dumps([asdict(one) for one in scores], indent=2)) if as_json else Console().print(table(scores))


def table(scores: list[TaskScore]) -> Table:
    grid = Table("task", "reward", "entropy", "turns", "tokens", "how episodes ended")
    for one in scores:
        reasons = ", ".join(f"{reason} {count}" for reason, count in one.reasons.items())
        figures = (f"{mean.value:.3f}" for mean in (one.reward, one.entropy, one.turns, one.tokens))
        grid.add_row(one.task, *figures, reasons)
    return grid
