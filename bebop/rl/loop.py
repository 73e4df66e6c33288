"""The loop of reinforcement learning; docs/dataflow.md says who waits for whom.

::

    gate -> fleet (play, score) -> groups -> learner.update -> publish -> gate
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bebop.metrics import Mean
from bebop.models.policy import Policy
from bebop.rl.clock import StepClock
from bebop.rl.config import TrainRL
from bebop.rl.fleet import Interrupted
from bebop.rl.jobs import evaluation_jobs
from bebop.rl.journal import Journal
from bebop.rl.learner import UpdateReport
from bebop.rl.metrics_of import Metrics, draft_metrics, drafts_of, reward_metrics, token_metrics
from bebop.rl.parts import Parts, assembled
from bebop.rl.records import Busy, StepGroups
from bebop.rl.transcripts import bins_row, chosen_rollouts, transcript_row
from bebop.runs import RunDirectory
from bebop.training.checkpoint import save_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Observer:
    """Who watches the run and may call it off."""

    show: Callable[[int, Mapping[str, Mean | float]], None]
    """Takes the step and its metrics."""
    is_called_off: Callable[[], bool]


def train_rl(config: TrainRL, run: RunDirectory, observer: Observer) -> Policy:
    """Train from the run's last checkpoint to ``config.steps``; the policy that comes out.

    ``Interrupted`` when it is called off: then the run stands at a checkpoint of the last update.
    """
    with assembled(config, run) as parts:
        first = parts.learner.version
        with Journal(run, first if first else -1, config.dashboards) as journal:
            try:
                learn(config, parts, journal, run, observer)
            except Interrupted:
                save(parts, run)
                raise
        return parts.learner.policy


def learn(config: TrainRL, parts: Parts, journal: Journal, run: RunDirectory, observer: Observer) -> None:
    """The loop itself."""
    learner, clock = parts.learner, StepClock()
    if learner.version == 0 and config.evaluation.every:
        with clock.paused():
            journal.write(0, evaluate(config, parts))
    parts.intake.issue(learner.version)
    for step in range(learner.version, config.steps):
        with clock.part("exposed_generation"):
            groups = parts.intake.gather(step, observer.is_called_off)
        with clock.part("training"):
            report = learner.update(groups.learned, partial(parts.intake.issue, step))
        with clock.part("publication"):
            publish(parts)
        parts.watch.observe(step, drafts_of(groups.rollouts))
        is_evaluated = is_due(learner.version, config.evaluation.every, config.steps)
        if is_evaluated:
            # Else the workers would play it while the clock stands, and later steps would have it for nothing.
            with clock.part("exposed_generation"):
                parts.intake.play_out()
        metrics = step_metrics(groups, report, clock.lap(), parts.fleet.take_generation())
        if is_evaluated:
            with clock.paused():
                metrics |= evaluate(config, parts)
        parts.intake.issue(learner.version)
        journal.write(learner.version, metrics)
        write_rows(config, parts, journal, groups)
        if is_due(learner.version, config.checkpoint_every, config.steps):
            with clock.part("checkpoint"):
                save(parts, run)
        observer.show(learner.version, metrics)


def publish(parts: Parts) -> None:
    """Have every worker sample with the learner's weights, and prove that it does."""
    tensors = parts.learner.tensors()
    parts.contract.expect(tensors)
    weights = parts.store.write(parts.learner.version, tensors)
    parts.fleet.spread(weights)
    parts.store.keep_only(weights)


def evaluate(config: TrainRL, parts: Parts) -> Metrics:
    """Reward on held-out problems, sampled with the learner's weights."""
    names = [one.name for one in config.tasks]
    jobs = evaluation_jobs(parts.learner.version, names, config.evaluation.problems, config.seed)
    parts.fleet.issue(jobs)
    played = parts.fleet.gather([job.id for job in jobs])
    parts.fleet.take_generation()
    return reward_metrics([one for rollouts in played for one in rollouts], "heldout_reward")


def step_metrics(groups: StepGroups, report: UpdateReport, seconds: dict[str, float], generation: Busy) -> Metrics:
    rollouts = groups.rollouts
    tokens = token_metrics(rollouts)
    num_tokens = sum(one.num_model_tokens for one in rollouts)
    return {
        **reward_metrics(rollouts),
        **tokens,
        **draft_metrics(drafts_of(rollouts)),
        **report.metrics,
        "groups/replaced": len(groups.replaced),
        **{f"time/{name}": value for name, value in seconds.items()},
        "time/generation": generation.seconds,
        "rollout/rows": Mean(generation.row_seconds, generation.seconds),
        "time/scoring": sum(one.scoring_seconds for one in rollouts),
        "generation_share": seconds["exposed_generation"] / seconds["step"],
        "tokens_per_second": num_tokens / seconds["step"],
        "version": report.version,
    }


def write_rows(config: TrainRL, parts: Parts, journal: Journal, groups: StepGroups) -> None:
    step = parts.learner.version
    chosen = chosen_rollouts(groups.learned, config.transcripts_per_step, step)
    journal.write_rows([transcript_row(step, one, parts.tokenizer) for one in chosen], bins_row(step, groups.rollouts))


def save(parts: Parts, run: RunDirectory) -> None:
    """A checkpoint of the learner and its place in the data; what was under way is played again."""
    learner = parts.learner
    save_checkpoint(run.checkpoints_path, learner.version, learner.trained, position=parts.intake.position)


def is_due(version: int, every: int, last: int) -> bool:
    return bool(every) and (version % every == 0 or version == last)
