"""The acts of the quickstart for a policy, as commands that a person could type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bebop.quickstart import findings
from bebop.quickstart.acts import Act, Step, one_by_one, output_of, side_by_side

CONFIGS = Path(__file__).parent / "configs"
OBJECTIVES = ("ce", "e2e_tv")
TASKS = ("math", "code", "agent")
REPORT = ("--title", "Bebop quickstart", "--baseline", findings.BASELINE, "--out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to run reinforcement learning."""

    name: str
    head: str | None
    """Objective of the head it drafts with; None samples without one."""
    rule: str = "rejection"

    @property
    def label(self) -> str:
        return "without MTP" if self.head is None else f"{self.rule} with the {self.head} head"


ARMS = (
    Arm(name=findings.BASELINE, head=None),
    Arm(name="rl-rejection-e2e_tv", head="e2e_tv"),
    Arm(name="rl-target_only-ce", head="ce", rule="target_only"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much of everything one policy gets, and how many minutes that takes on two cores."""

    policy: str
    name: str
    """Of the configurations: ``mtp-NAME.yaml``, ``rl-NAME.yaml``."""
    minutes: int | None
    """Without the tuning; None where nobody knows."""
    reward_problems: int
    head_problems: int
    tuning_minutes: int | None = None
    """Of the supervised tuning that makes the policy, unless it is there; None where it ships."""
    fresh_head: bool = False
    """Heads start from a new one although the configuration goes on from the policy's own."""
    stops_thinking: bool = False
    """The policy would think before it answers, which takes more tokens than there are, and is told not to."""

    def duration(self, made: Path | None) -> str:
        """Of all acts; ``made``: where the policy is, if it need not be tuned first."""
        if self.minutes is None:
            return f"as long as this policy takes (SmolLM2-135M: {SCALES['smollm2-sft'].minutes} minutes on two cores)"
        return f"about {self.minutes + (self.tuning_minutes or 0) * (made is None)} minutes on two cores"

    def to_stop_thinking(self, *words: str) -> tuple[str, ...]:
        """The words that tell a command that the policy is not to think, where it must be told."""
        return words if self.stops_thinking else ()


SCALES = {
    "tiny": Scale(policy="tiny", name="tiny", minutes=6, reward_problems=16, head_problems=32),
    "smollm2-sft": Scale(
        policy="smollm2-sft", name="smollm2", minutes=75, reward_problems=8, head_problems=8, tuning_minutes=40
    ),
}


def own_scale(policy: str, *, has_head: bool, stops_thinking: bool) -> Scale:
    """What a checkpoint of one's own gets: as much as SmolLM2."""
    return Scale(
        policy=policy,
        name="own",
        minutes=None,
        reward_problems=8,
        head_problems=8,
        fresh_head=not has_head,
        stops_thinking=stops_thinking,
    )


def plan(scale: Scale, directory: Path, made: Path | None = None) -> list[Act]:
    """Everything that is run, in order. ``made``: where the policy is, if it need not be tuned first."""
    acts = [the_policy(scale, directory, made), the_heads(scale, directory), the_acceptance(scale, directory)]
    return [*acts, the_arms(scale, directory), the_report(directory)]


def the_policy(scale: Scale, directory: Path, made: Path | None) -> Act:
    tuning = [train_sft(scale, directory)] if scale.tuning_minutes and made is None else []
    measure = Step(
        name="policy",
        arguments=(
            *("eval-policy", scale.policy, "--problems", str(scale.reward_problems), "--json"),
            *scale.to_stop_thinking("--no-thinking"),
        ),
    )
    return Act(
        title="the policy",
        purpose="How good it is at the three families of tasks, and how sure of its words, before any training."
        + (f" It is there already: {made} is taken as it is." if scale.tuning_minutes and made else ""),
        waves=one_by_one(*tuning, measure),
        found=findings.policy,
    )


def train_sft(scale: Scale, directory: Path) -> Step:
    return Step(
        name="tuning",
        arguments=("train-sft", config(f"sft-{scale.name}"), f"output={scale.policy}", f"run={directory / 'tuning'}"),
    )


def the_heads(scale: Scale, directory: Path) -> Act:
    return Act(
        title="two heads",
        purpose="From one start, on the policy's own rollouts: one head by cross-entropy, one by e2e total variation.",
        waves=side_by_side(*(train_mtp(scale, directory, objective) for objective in OBJECTIVES)),
        found=findings.heads,
    )


def train_mtp(scale: Scale, directory: Path, objective: str) -> Step:
    return Step(
        name=f"head-{objective}",
        arguments=(
            "train-mtp",
            config(f"mtp-{scale.name}"),
            f"policy={scale.policy}",
            f"loss.objective={objective}",
            *(("head=fresh",) if scale.fresh_head else ()),
            *scale.to_stop_thinking("data.collect.thinking=false"),
            f"run={directory / f'head-{objective}'}",
            f"output={head(directory, objective)}",
        ),
    )


def the_acceptance(scale: Scale, directory: Path) -> Act:
    return Act(
        title="acceptance",
        purpose="How many of three drafts survive on held-out problems, by rule and head, at temperature 1.",
        waves=side_by_side(*(eval_mtp(scale, directory, objective) for objective in OBJECTIVES)),
        found=findings.acceptance,
    )


def eval_mtp(scale: Scale, directory: Path, objective: str) -> Step:
    problems = ("--problems", str(scale.head_problems))
    rules = ("--rules", "rejection,block,target_only", "--tasks", ",".join(TASKS))
    return Step(
        name=f"{findings.ACCEPTANCE}{objective}",
        arguments=(
            *("eval-mtp", str(head(directory, objective)), *rules, *problems, "--json"),
            *scale.to_stop_thinking("--no-thinking"),
        ),
    )


def the_arms(scale: Scale, directory: Path) -> Act:
    return Act(
        title="reinforcement learning",
        purpose="Asynchronous GRPO on the same problems: without MTP, and with each head frozen.",
        waves=one_by_one(*(train_rl(scale, directory, arm) for arm in ARMS)),
        found=findings.learning,
    )


def train_rl(scale: Scale, directory: Path, arm: Arm) -> Step:
    policy = scale.policy if arm.head is None else str(head(directory, arm.head))
    mtp = ("mtp.mode=none",) if arm.head is None else ("mtp.mode=frozen", f"mtp.rule={arm.rule}")
    return Step(
        name=arm.name,
        arguments=(
            "train-rl",
            config(f"rl-{scale.name}"),
            f"policy={policy}",
            *mtp,
            *scale.to_stop_thinking("rollout.thinking=false"),
            f"run={directory / arm.name}",
            f"output={directory / 'policies' / arm.name}",
        ),
    )


def the_report(directory: Path) -> Act:
    names = (*(f"head-{one}" for one in OBJECTIVES), *(arm.name for arm in ARMS))
    evaluations = (output_of(directory, f"{findings.ACCEPTANCE}{one}") for one in OBJECTIVES)
    inputs = [str(path) for path in (*(directory / name for name in names), *evaluations)]
    return Act(
        title="the report",
        purpose="One page with the pictures of this run.",
        waves=one_by_one(Step(name="report", arguments=("report", *inputs, *REPORT, str(directory / "report.html")))),
        found=findings.report,
    )


def head(directory: Path, objective: str) -> Path:
    return directory / "policies" / objective


def config(name: str) -> str:
    return str(CONFIGS / f"{name}.yaml")


def commands(acts: Sequence[Act], directory: Path) -> list[str]:
    """What would be run, for ``--dry-run``, to be typed into a shell; later commands read what earlier ones print."""
    typed = [
        f"bebop {shlex.join(step.arguments)} > {shlex.quote(str(output_of(directory, step.name)))}"
        for act in acts
        for step in act.steps
    ]
    return [f"mkdir -p {shlex.quote(str(directory / 'out'))}", *typed]
