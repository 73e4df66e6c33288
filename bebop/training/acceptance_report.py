"""The whole evaluation of a head on one task: played, estimated and calibrated figures with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bebop.errors import UserError
from bebop.models.policy import Policy
from bebop.tasks.episodes import EpisodePlan, Rollout
from bebop.training.bootstrap import Difference, Figure, Tally, differences, figures
from bebop.training.calibration import calibrated
from bebop.training.mtp_eval import EvalSettings, estimated_tally, played, played_tally, rollout_chains


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherHead:
    """What another head promises along the same rollouts."""

    figures: dict[str, Figure]
    differences: dict[str, Difference]
    """The evaluated head's figures less this one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One task's figures; ``bebop.training.mtp_eval`` says what each name means."""

    task: str
    num_episodes: int
    """Per rule."""
    figures: dict[str, Figure]
    draft_temperatures: list[float] | None
    """The calibrated one of each depth; None where none was asked for."""
    others: dict[str, OtherHead]
    """By the name they were given."""


def evaluate_task(
    policy: Policy,
    task: str,
    wanted: Sequence[EpisodePlan],
    settings: EvalSettings,
    show: Callable[[], None],
    others: Mapping[str, Policy] | None = None,
) -> TaskResult:
    """Play ``wanted`` once per rule; estimates are made along the first rule's rollouts, all rules sampling one law.

    ``others`` are the same policy with other heads (``check_same_target``): what those promise is estimated along the
    same rollouts.
    """
    found: dict[str, Figure] = {}
    rollouts: list[Rollout] = []
    for rule in settings.questions.rules:
        of_rule = played(policy, rule, wanted, settings, show)
        found |= figures([played_tally(rule, one.drafts) for one in of_rule])
        rollouts = rollouts or of_rule
    chains = rollout_chains(policy, rollouts, settings)
    estimated = [estimated_tally(one) for one in chains]
    found |= figures(estimated)
    temperatures: list[float] | None = None
    if settings.questions.draft_temperatures:
        temperatures, tallies = calibrated(chains)
        found |= figures(tallies)
    return TaskResult(
        task=task,
        num_episodes=len(wanted),
        figures=dict(sorted(found.items())),
        draft_temperatures=temperatures,
        others={name: compared(estimated, one, rollouts, settings) for name, one in (others or {}).items()},
    )


def compared(
    estimated: Sequence[Tally], other: Policy, rollouts: Sequence[Rollout], settings: EvalSettings
) -> OtherHead:
    """Another head along ``rollouts``, of which the evaluated one promises ``estimated``."""
    plain = replace(settings, questions=replace(settings.questions, draft_temperatures=()))
    tallies = [estimated_tally(one) for one in rollout_chains(other, rollouts, plain)]
    return OtherHead(figures=figures(tallies), differences=differences(estimated, tallies))


def check_same_target(policy: Policy, others: Mapping[str, Policy]) -> None:
    """UserError for one of ``others`` that has another target: along its own rollouts its head may be better."""
    for name, one in others.items():
        changed = [group for group in policy.fingerprint.differing_groups(one.fingerprint) if group != "head"]
        if changed:
            raise UserError(
                f"{name} is another policy ({', '.join(changed)} not the same), so its head cannot be judged along "
                "this one's rollouts; compare heads that were trained on one policy"
            )
