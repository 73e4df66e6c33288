"""The arms of the comparison of objectives: a head trained from where it is to start, and how well it drafts then."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from bebop.bench.objective_lab import Lab, say
from bebop.core.sampling import Sampling
from bebop.files import atomic_file, atomic_write
from bebop.metrics import Mean
from bebop.models.fresh import initialise_head
from bebop.runs import RunDirectory
from bebop.tasks.base import Split
from bebop.tasks.evaluation import plans
from bebop.tasks.registry import load_task
from bebop.training.bootstrap import Tally
from bebop.training.draft_vocabulary import WrittenTokens
from bebop.training.mtp import TrainingData, train_mtp
from bebop.training.mtp_config import TrainMTP
from bebop.training.mtp_eval import EvalSettings, estimated_tally, played, played_tally, sample_chains
from bebop.training.samples import Sample, epochs
from bebop.training.teacher_forced import Questions

ArmKind = Literal["start", "tuning", "from_start", "fresh", "fresh_without_warm_up"]
PLAYED_RULES = ("rejection", "target_only")
START_BY_THEMSELVES = ("ce", "kl")
"""Objectives that have a gradient where nothing overlaps yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One training."""

    kind: ArmKind
    objective: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.objective}-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """What came of it."""

    arm: Arm
    num_drafts: int
    seconds_per_step: float | None
    """Processor time, median over the steps; None where only the measuring was left to do."""
    figures: Mapping[str, Mapping[str, Mean]]
    """Task -> name of figure (see ``bebop.training.mtp_eval``) -> sums over its rollouts."""

    def rate(self, rule: str, task: str) -> float:
        """Accepted / drafted tokens: expected, over the rounds along the task's rollouts."""
        return (self.figures[task][f"{rule}/estimated_round_length"].value - 1) / self.num_drafts

    def mean_rate(self, rule: str) -> float:
        """Every task counting alike."""
        return statistics.fmean(self.rate(rule, task) for task in self.figures)


def run_arm(lab: Lab, arm: Arm) -> ArmResult:
    """The arm's result; trained and measured unless it is there."""
    path = lab.run.path / "arms" / arm.name / "result.json"
    if path.exists():
        return read_result(path)
    begin(lab, arm)
    seconds = train(lab, arm)
    is_tuning = arm.kind == "tuning"
    samples, rules = (lab.tuning, ("rejection",)) if is_tuning else (lab.heldout, lab.bench.rules)
    result = ArmResult(
        arm=arm,
        num_drafts=lab.bench.unroll.deployed,
        seconds_per_step=statistics.median(seconds) if seconds else None,
        figures=estimated(lab, samples, rules),
    )
    if lab.bench.arms.played and arm.kind == "from_start" and arm.seed == lab.bench.arms.seeds[0]:
        result = with_played(lab, result)
    atomic_write(path, json.dumps(asdict(result), indent=2) + "\n")
    rates = "  ".join(f"{task} {result.rate('rejection', task):.4f}" for task in result.figures)
    say(f"{arm.name}: rejection {rates}  mean {result.mean_rate('rejection'):.4f}")
    return result


def read_result(path: Path) -> ArmResult:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    figures = {
        task: {name: Mean(**one) for name, one in of_task.items()} for task, of_task in record.pop("figures").items()
    }
    return ArmResult(arm=Arm(**record.pop("arm")), figures=figures, **record)


def begin(lab: Lab, arm: Arm) -> None:
    """Set the head to where the arm starts: fresh, or the seed's common start, which is trained first if need be."""
    lab.head.float()
    if not has_common_start(lab, arm):
        initialise_head(lab.head, lab.policy.backbone, seed=arm.seed)
        return
    path = lab.run.path / "starts" / f"seed{arm.seed}.safetensors"
    if not path.exists():
        start = Arm(kind="start", objective="kl", lr=lab.bench.start_lr, seed=arm.seed)
        begin(lab, start)
        train(lab, start)
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as part:
            save_file(lab.head.state_dict(), part)
    lab.head.load_state_dict(load_file(path, device=str(lab.policy.device)))


def train(lab: Lab, arm: Arm) -> list[float]:
    """Train the head, going on from the arm's last checkpoint; -> processor seconds of every step."""
    bench = lab.bench
    config = settings_of(lab, arm)
    run = RunDirectory.create_or_resume(config.run, config, [arm.name], seed=arm.seed)
    source = epochs(lab.train, bench.per_step, arm.seed)
    # What follows the common start goes on in its data.
    offset = bench.start_steps if has_common_start(lab, arm) else 0
    moments = [time.process_time()]
    written = WrittenTokens.of(one.transcript for one in lab.train)
    data = TrainingData(samples=lambda step: source(step + offset), hiddens=lab.hiddens, written=written)
    train_mtp(config, lab.policy, data, run, lambda _: moments.append(time.process_time()))
    return [after - before for before, after in pairwise(moments)]


def has_common_start(lab: Lab, arm: Arm) -> bool:
    """Whether the arm goes on from the head that `kl` made; otherwise it begins with a fresh one."""
    return arm.kind in ("tuning", "from_start") and not lab.bench.from_fresh


def is_warmed_up(lab: Lab, arm: Arm) -> bool:
    if arm.kind in ("tuning", "from_start"):
        return lab.bench.from_fresh and arm.objective not in START_BY_THEMSELVES
    return arm.kind == "fresh"


def settings_of(lab: Lab, arm: Arm) -> TrainMTP:
    bench, directory = lab.bench, lab.run.path / "arms" / arm.name
    num_after = bench.steps if has_common_start(lab, arm) else bench.start_steps + bench.steps
    num_steps = bench.start_steps if arm.kind == "start" else num_after
    return TrainMTP.model_validate(
        {
            "policy": bench.policy,
            "output": directory / "policy",
            "run": directory,
            "steps": num_steps,
            "data": {
                "temperature": bench.temperature,
                "per_step": bench.per_step,
                "micro_batch_tokens": bench.micro_batch_tokens,
                "seed": arm.seed,
            },
            "unroll": bench.unroll,
            "loss": {
                "objective": arm.objective,
                "warm_up": bench.warm_up if is_warmed_up(lab, arm) else None,
                "drawn_tokens": bench.drawn_tokens,
            },
            "optimiser": {"lr": arm.lr, "warmup_steps": bench.warmup_steps},
            "checkpoint_every": 50,
        }
    )


def questions(lab: Lab, rules: Sequence[str]) -> EvalSettings:
    bench = lab.bench
    return EvalSettings(
        questions=Questions(sampling=Sampling(temperature=bench.temperature), rules=rules),
        num_drafts=bench.unroll.deployed,
        rows=bench.collect.rows,
        max_turn_tokens=bench.collect.max_turn_tokens,
        batch_tokens=bench.micro_batch_tokens,
    )


def estimated(lab: Lab, samples: Sequence[Sample], rules: Sequence[str]) -> dict[str, dict[str, Mean]]:
    """What the head's laws promise along ``samples``, per task."""
    found: dict[str, dict[str, Mean]] = {}
    chains = sample_chains(lab.policy, samples, lab.hiddens, questions(lab, rules))
    for sample, one in zip(samples, chains, strict=True):
        # An episode's id begins with its task.
        add(found.setdefault(sample.id.split("/")[0], {}), estimated_tally(one))
    return found


def with_played(lab: Lab, result: ArmResult) -> ArmResult:
    """The result with what the engine measures when it drafts with the head."""
    lab.head.to(lab.policy.dtype)
    figures = {task: dict(one) for task, one in result.figures.items()}
    for choice in lab.bench.collect.tasks:
        task = load_task(choice.name, lab.bench.collect.seed, choice.options)
        wanted = list(plans([task], Split.HELDOUT, range(lab.bench.arms.played)))
        for rule in PLAYED_RULES:
            for rollout in played(lab.policy, rule, wanted, questions(lab, PLAYED_RULES), lambda: None):
                add(figures.setdefault(task.name, {}), played_tally(rule, rollout.drafts))
    return replace(result, figures=figures)


def add(sums: dict[str, Mean], tally: Tally) -> None:
    for name, one in tally.items():
        sums[name] = sums.get(name, Mean()) + one
