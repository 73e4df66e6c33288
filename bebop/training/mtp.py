"""Training of the MTP head on the policy's own rollouts: everything but the head is frozen.

::

    samples(step) -> packed micro-batches -> frozen hiddens -> unroll -> fused loss -> AdamW on the head -> checkpoint
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import nn

from bebop.core.chains import ChainLoss
from bebop.core.curriculum import Curriculum
from bebop.core.objectives import Objective
from bebop.core.vocabulary_sample import VocabularySample
from bebop.dashboards import open_dashboard
from bebop.errors import UserError
from bebop.metrics import Mean, MetricsWriter
from bebop.models.policy import Policy
from bebop.runs import RunDirectory
from bebop.training.chain_plan import plan_chains
from bebop.training.checkpoint import Trained, load_latest, save_checkpoint
from bebop.training.draft_loss import Tallies, chain_loss, draft_chains
from bebop.training.draft_vocabulary import WrittenTokens
from bebop.training.hidden import HiddenSource
from bebop.training.mtp_config import TrainMTP
from bebop.training.optimiser import learning_rate, open_optimiser, update
from bebop.training.packing import packs
from bebop.training.parallel import ALONE, HeadShards, World, check_share
from bebop.training.samples import Sample, SampleSource


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What a step is made from."""

    samples: SampleSource
    hiddens: HiddenSource
    written: WrittenTokens
    """Of all samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MTPReport:
    """What one update did."""

    step: int
    loss: Mean
    """Per counted (chain, depth)."""
    overlaps: tuple[Mean, ...]
    """Depth k: sum_v min(p, q) over the chains that count there, at the rollouts' temperature; estimated from the drawn
    tokens where the loss is."""
    accepted: Mean
    """Drafts that rejection accepts of the deployed K, expected (docs/math.md), per chain that is that long."""
    grad_norm: float
    lr: float
    is_warm: bool
    """Whether the main objective was trained, not the warm-up's."""
    num_tokens: int
    """Tokens of the sequences, without padding."""
    seconds: float

    @property
    def mean_overlap(self) -> float:
        return sum(self.overlaps, Mean()).value


OVERLAP_RATE = 0.05
"""Weight of a step in the running mean of the overlap, which ends the warm-up. A single step of a few sequences is off
by several points: on `smollm2-sft` one of 500 first ones was above 0.95 where their mean was 0.90."""


class MTPState:
    """The head, its optimiser, and how far the warm-up is; one checkpoint holds all of it."""

    def __init__(self, policy: Policy, config: TrainMTP, world: World = ALONE) -> None:
        assert policy.head is not None
        check_share(world, config.data.per_step, config.optimiser.name)
        freeze_all_but_head(policy)
        self.shards = HeadShards(policy, world)
        self.optimiser = open_optimiser(policy.head.named_parameters(), config.optimiser)
        self._is_warm = nn.Parameter(torch.zeros(()), requires_grad=False)
        parameters = {f"head.{name}": one for name, one in policy.head.named_parameters() if one.requires_grad}
        self._overlap = nn.Parameter(torch.zeros(()), requires_grad=False)
        curriculum = {"curriculum.is_warm": self._is_warm, "curriculum.overlap": self._overlap}
        self.trained = Trained({**parameters, **curriculum}, self.optimiser)

    @property
    def is_warm(self) -> bool:
        return bool(self._is_warm)

    def running_overlap(self, mean_overlap: float) -> float:
        """The mean over the last steps, this one's included. It rises from 0 with a run's first steps."""
        self._overlap.lerp_(torch.tensor(mean_overlap), OVERLAP_RATE)
        return float(self._overlap)

    def end_warm_up(self) -> None:
        self._is_warm.fill_(1.0)


def freeze_all_but_head(policy: Policy) -> None:
    """Gradients for the head's parameters alone, which become float32 to add up small updates."""
    assert policy.head is not None
    policy.backbone.requires_grad_(False)
    policy.backbone.eval()
    policy.head.float().requires_grad_(True)


def train_mtp(
    config: TrainMTP,
    policy: Policy,
    data: TrainingData,
    run: RunDirectory,
    show: Callable[[MTPReport], None],
    world: World = ALONE,
) -> Policy:
    """Train ``policy.head`` in place, going on where the last checkpoint stands; -> the policy, its head whole."""
    state = MTPState(policy, config, world)
    first = load_latest(run.checkpoints_path, state.trained)
    with open_metrics(config, run, first) if world.is_main else nullcontext() as metrics:
        for step in range(first, config.steps):
            report = train_step(config, policy, data, state, step)
            show(report)
            is_last = report.step == config.steps
            if metrics is not None and (report.step % config.log_every == 0 or is_last):
                metrics.write(report.step, as_metrics(report))
            if report.step % config.checkpoint_every == 0 or is_last:
                save_checkpoint(run.checkpoints_path, report.step, state.trained, writes=world.is_main)
    return state.shards.whole()


def open_metrics(config: TrainMTP, run: RunDirectory, first: int) -> MetricsWriter:
    dashboards = [open_dashboard(one, run.path) for one in config.dashboards]
    return run.metrics_writer(keep_through=first, dashboards=dashboards)


def train_step(config: TrainMTP, policy: Policy, data: TrainingData, state: MTPState, step: int) -> MTPReport:
    """One update on the samples of ``step``."""
    started = time.perf_counter()
    samples = data.samples(step)
    curriculum = config.loss.curriculum(config.data.temperature)
    is_warm = state.is_warm or curriculum.warm_up is None
    how = (curriculum, curriculum.objective(is_warm=is_warm))
    size, num_drawn = policy.config.vocab_size, config.loss.drawn_tokens
    vocabulary = data.written.sample(size, num_drawn, config.data.seed, step)
    losses = accumulate(config, policy, data.hiddens, (state.shards, samples), how, vocabulary)
    seen = reduce(add, state.shards.world.gather(Tallies.of(losses, config.unroll.deployed)))
    if not math.isfinite(seen.loss.value):
        raise UserError(diverged("loss", step, samples))
    lr = learning_rate(step, config.steps, config.optimiser)
    norm = update(state.optimiser, lr, config.optimiser.max_grad_norm)
    if not math.isfinite(norm):
        raise UserError(diverged("gradient", step, samples))
    report = MTPReport(
        step=step + 1,
        loss=seen.loss,
        overlaps=seen.overlaps,
        accepted=seen.accepted,
        grad_norm=norm,
        lr=lr,
        is_warm=is_warm,
        num_tokens=sum(one.num_tokens for one in samples),
        seconds=time.perf_counter() - started,
    )
    overlap = state.running_overlap(report.mean_overlap)
    if not is_warm and curriculum.becomes_warm(overlap, (step + 1) / config.steps):
        state.end_warm_up()
    return report


def accumulate(
    config: TrainMTP,
    policy: Policy,
    hiddens: HiddenSource,
    what: tuple[HeadShards, Sequence[Sample]],
    how: tuple[Curriculum, Objective],
    vocabulary: VocabularySample | None,
) -> list[ChainLoss]:
    """Backward through this process's micro-batches; the gradient is that of the mean over the step's counted rows."""
    (shards, samples), (curriculum, objective) = what, how
    mine = shards.world.share(sorted(samples, key=lambda one: one.num_tokens))
    micro_batches = packs(mine, config.data.micro_batch_tokens)
    plans = [plan_chains(one.batch.to(policy.device), config.unroll.depths) for one in micro_batches]
    num_rows = sum(shards.world.gather(sum(plan.num_counted for plan in plans)))
    losses = []
    for number, (pack, plan) in enumerate(zip(micro_batches, plans, strict=True), start=1):
        chains = draft_chains(
            policy,
            hiddens(pack),
            plan,
            config.unroll.layout,
            recompute=config.unroll.recompute,
            run=shards.run,
        )
        loss = chain_loss(policy, chains, objective, curriculum, vocabulary, fused=config.loss.fused)
        shards.backward(loss.loss_N.sum() * plan.num_depths / num_rows, is_last=number == len(plans))
        losses.append(loss)
    return losses


def diverged(what: str, step: int, samples: Sequence[Sample]) -> str:
    ids = ", ".join(one.id for one in samples)
    return (
        f"the {what} of step {step} is not finite; lower optimiser.lr and resume from the last checkpoint, "
        f"which is whole (the step's sequences: {ids})"
    )


def as_metrics(report: MTPReport) -> dict[str, float | Mean]:
    overlaps = {f"mtp/overlap@{depth}": one for depth, one in enumerate(report.overlaps, start=1)}
    return {
        "mtp/loss": report.loss,
        **overlaps,
        "mtp/expected_accepted": report.accepted,
        "mtp/grad_norm": report.grad_norm,
        "mtp/lr": report.lr,
        "mtp/is_warm": float(report.is_warm),
        "time/tokens_per_second": report.num_tokens / report.seconds,
    }
