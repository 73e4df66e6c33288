"""`bebop plan`: what the method would gain, before anything is spent on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bebop.cli.plan_inputs import Given, known_from, parsed
from bebop.cli.plan_table import shown
from bebop.plan.baseline import read_baseline, training_seconds
from bebop.plan.measurement import Wanted
from bebop.plan.plan import Question, StepFacts, make_plan


def command(
    policy: Annotated[str | None, typer.Option(help="Policy to be measured here.", show_default="tiny")] = None,
    bench: Annotated[Path | None, typer.Option(help="File of `bebop bench decode --json`, instead.")] = None,
    acceptance: Annotated[str | None, typer.Option(help="Chance that a draft survives; or one per depth.")] = None,
    costs: Annotated[str, typer.Option(help="Beside it: of a token and a draft step, over a forward's.")] = "0.01,0.1",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,4,16",
    k: Annotated[int, typer.Option("--k", min=1, max=16, help="Most draft tokens a round.")] = 5,
    context: Annotated[int, typer.Option(min=0, help="Measure with so many tokens before the new ones.")] = 0,
    rule: Annotated[str, typer.Option(help="Verification rule that is measured.")] = "rejection",
    run: Annotated[Path | None, typer.Option(help="`train-rl` run without speculation, for its step.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Batch of the rollouts.", show_default="the run's")] = None,
    draft: Annotated[int | None, typer.Option(min=1, max=16, help="Rollouts' draft tokens, if not the best.")] = None,
    generation_share: Annotated[float | None, typer.Option(help="Of a synchronous step, without --run.")] = None,
    step_seconds: Annotated[float | None, typer.Option(min=0, help="Of a step, without --run.")] = None,
    head: Annotated[str | None, typer.Option(help="Seconds of the head's training, or its run.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the run.", show_default="the run's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Predict what drafting gains: per batch size, for a step of RL, and against the cost of the head's training.

    Measures a policy for a minute, or works from given numbers. Says so where it does not pay.

    Example: bebop plan --acceptance 0.85 --batch 1,16,256 --generation-share 0.7 --step-seconds 60 --head 3600
    """
    baseline = read_baseline(run) if run else None
    batches = parsed(batch, "--batch", int)
    rollout_batch = rows or (baseline.rows if baseline else None) or max(batches)
    given = Given(policy=policy, bench=bench, acceptance=acceptance, costs=costs)
    wanted = Wanted(batches=tuple(sorted({*batches, rollout_batch})), max_drafts=k, rule=rule, context=context)
    facts = StepFacts(
        logged=baseline.step if baseline else None,
        generation_share=generation_share,
        seconds=step_seconds,
        head_seconds=training_seconds(head) if head else None,
        num_steps=steps or (baseline.steps if baseline else None),
    )
    question = Question(
        known=known_from(given, wanted, rollout_batch),
        batches=batches,
        rollout_batch=rollout_batch,
        max_drafts=k,
        num_drafts=draft,
        step=facts,
    )
    plan = make_plan(question)
    print(json.dumps(asdict(plan), indent=2)) if as_json else Console().print(shown(plan))
