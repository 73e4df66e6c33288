"""The whole evaluation of a head on one task: played, estimated and calibrated figures with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bebop.models.policy import Policy
from bebop.tasks.episodes import EpisodePlan, Rollout
from bebop.training.bootstrap import Figure, figures
from bebop.training.calibration import calibrated
from bebop.training.mtp_eval import EvalSettings, estimated_tally, played, played_tally, rollout_chains


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One task's figures; ``bebop.training.mtp_eval`` says what each name means."""

    task: str
    num_episodes: int
    """Per rule."""
    figures: dict[str, Figure]
    draft_temperatures: list[float] | None
    """The calibrated one of each depth; None where none was asked for."""


def evaluate_task(
    policy: Policy, task: str, wanted: Sequence[EpisodePlan], settings: EvalSettings, show: Callable[[], None]
) -> TaskResult:
    """Play ``wanted`` once per rule; estimates are made along the first rule's rollouts, all rules sampling one law."""
    found: dict[str, Figure] = {}
    rollouts: list[Rollout] = []
    for rule in settings.questions.rules:
        of_rule = played(policy, rule, wanted, settings, show)
        found |= figures([played_tally(rule, one.drafts) for one in of_rule])
        rollouts = rollouts or of_rule
    chains = rollout_chains(policy, rollouts, settings)
    found |= figures([estimated_tally(one) for one in chains])
    temperatures: list[float] | None = None
    if settings.questions.draft_temperatures:
        temperatures, tallies = calibrated(chains)
        found |= figures(tallies)
    return TaskResult(
        task=task,
        num_episodes=len(wanted),
        figures=dict(sorted(found.items())),
        draft_temperatures=temperatures,
    )
