"""Training of the MTP head on the policy's own rollouts: everything but the head is frozen.

::

    samples(step) -> packed micro-batches -> frozen hiddens -> unroll -> fused loss -> AdamW on the head -> checkpoint
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bebop.core.acceptance import expected_accepted_rejection
from bebop.core.chains import ChainLoss, DraftChains, plain_loss
from bebop.core.curriculum import Curriculum
from bebop.core.fused import fused_loss, fusion_for
from bebop.core.objectives import Objective
from bebop.dashboards import open_dashboard
from bebop.errors import UserError
from bebop.models.policy import Policy
from bebop.runs import Mean, RunDirectory
from bebop.training.chain_plan import ChainPlan, plan_chains
from bebop.training.checkpoint import Trained, load_latest, save_checkpoint
from bebop.training.hidden import Hiddens, HiddenSource
from bebop.training.mtp_config import TrainMTP
from bebop.training.optimiser import learning_rate, open_optimiser, update
from bebop.training.packing import packs
from bebop.training.samples import Sample, SampleSource
from bebop.training.unroll import unroll
from bebop.training.unroll_attention import LAYOUTS

# Shapes: B rows, T tokens, N chains, K depths, P = B T positions, H hidden size, V vocabulary.


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What a step is made from."""

    samples: SampleSource
    hiddens: HiddenSource


@dataclass(frozen=True, kw_only=True, slots=True)
class MTPReport:
    """What one update did."""

    step: int
    loss: Mean
    """Per counted (chain, depth)."""
    overlaps: tuple[Mean, ...]
    """Depth k: sum_v min(p, q) over the chains that count there, at the rollouts' temperature."""
    accepted: Mean
    """Drafts that rejection accepts of the deployed K, expected (spec, section 4), per chain that is that long."""
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


class MTPState:
    """The head, its optimiser, and whether the warm-up is over; one checkpoint holds all three."""

    def __init__(self, policy: Policy, config: TrainMTP) -> None:
        assert policy.head is not None
        freeze_all_but_head(policy)
        self.optimiser = open_optimiser(policy.head.named_parameters(), config.optimiser)
        self._is_warm = nn.Parameter(torch.zeros(()), requires_grad=False)
        parameters = {f"head.{name}": one for name, one in policy.head.named_parameters() if one.requires_grad}
        self.trained = Trained({**parameters, "curriculum.is_warm": self._is_warm}, self.optimiser)

    @property
    def is_warm(self) -> bool:
        return bool(self._is_warm)

    def end_warm_up(self) -> None:
        self._is_warm.fill_(1.0)


def freeze_all_but_head(policy: Policy) -> None:
    """Gradients for the head's parameters alone, which become float32 to add up small updates."""
    assert policy.head is not None
    policy.backbone.requires_grad_(False)
    policy.backbone.eval()
    policy.head.float().requires_grad_(True)


def train_mtp(
    config: TrainMTP, policy: Policy, data: TrainingData, run: RunDirectory, show: Callable[[MTPReport], None]
) -> None:
    """Train ``policy.head`` in place, resuming where the run's last checkpoint stands."""
    state = MTPState(policy, config)
    first = load_latest(run.checkpoints_path, state.trained)
    dashboards = [open_dashboard(one, run.path) for one in config.dashboards]
    with run.metrics_writer(keep_through=first, dashboards=dashboards) as metrics:
        for step in range(first, config.steps):
            report = train_step(config, policy, data, state, step)
            show(report)
            if report.step % config.log_every == 0 or report.step == config.steps:
                metrics.write(report.step, as_metrics(report))
            if report.step % config.checkpoint_every == 0 or report.step == config.steps:
                save_checkpoint(run.checkpoints_path, report.step, state.trained)


def train_step(config: TrainMTP, policy: Policy, data: TrainingData, state: MTPState, step: int) -> MTPReport:
    """One update on the samples of ``step``."""
    started = time.perf_counter()
    samples = data.samples(step)
    curriculum = config.loss.curriculum(config.data.temperature)
    is_warm = state.is_warm or curriculum.warm_up is None
    losses = accumulate(config, policy, data.hiddens, samples, (curriculum, curriculum.objective(is_warm=is_warm)))
    loss = sum((loss_of(one) for one in losses), Mean())
    if not math.isfinite(loss.value):
        raise UserError(diverged("loss", step, samples))
    lr = learning_rate(step, config.steps, config.optimiser)
    norm = update(state.optimiser, lr, config.optimiser.max_grad_norm)
    if not math.isfinite(norm):
        raise UserError(diverged("gradient", step, samples))
    overlaps = overlaps_of(losses)
    if not is_warm and curriculum.becomes_warm(sum(overlaps, Mean()).value):
        state.end_warm_up()
    return MTPReport(
        step=step + 1,
        loss=loss,
        overlaps=overlaps,
        accepted=sum((accepted_of(one, config.unroll.deployed) for one in losses), Mean()),
        grad_norm=norm,
        lr=lr,
        is_warm=is_warm,
        num_tokens=sum(one.num_tokens for one in samples),
        seconds=time.perf_counter() - started,
    )


def accumulate(
    config: TrainMTP,
    policy: Policy,
    hiddens: HiddenSource,
    samples: Sequence[Sample],
    how: tuple[Curriculum, Objective],
) -> list[ChainLoss]:
    """Backward through every micro-batch; the gradient is that of the mean over all counted rows of the step."""
    curriculum, objective = how
    micro_batches = packs(samples, config.data.micro_batch_tokens)
    plans = [plan_chains(one.batch.to(policy.device), config.unroll.depths) for one in micro_batches]
    num_rows = sum(plan.num_counted for plan in plans)
    losses = []
    for pack, plan in zip(micro_batches, plans, strict=True):
        chains = draft_chains(policy, hiddens(pack), plan, config.unroll.layout, recompute=config.unroll.recompute)
        loss = chain_loss(policy, chains, objective, curriculum, fused=config.loss.fused)
        (loss.loss_N.sum() * plan.num_depths / num_rows).backward()
        losses.append(loss)
    return losses


def draft_chains(
    policy: Policy, hiddens: Hiddens, plan: ChainPlan, layout: str, *, recompute: bool = False
) -> DraftChains:
    """Unroll the head along the plan's chains and gather what the loss compares."""
    mixed = policy.dtype != torch.float32
    with torch.autocast(policy.device.type, policy.dtype, enabled=mixed):
        made = unroll(policy, hiddens.draft_input_BTH, plan, LAYOUTS[layout], recompute=recompute)
    return DraftChains(
        draft_states_NKH=made.states_NKH.to(policy.dtype),
        target_states_PH=hiddens.target_BTH.flatten(0, 1),
        positions_NK=made.plan.positions_NK,
        tokens_NK=made.plan.labels_NK,
        depth_mask_NK=made.plan.depth_mask_NK,
    )


def chain_loss(
    policy: Policy, chains: DraftChains, objective: Objective, curriculum: Curriculum, *, fused: bool
) -> ChainLoss:
    weight_VH = lm_head_weight(policy)
    if not fused:
        return plain_loss(chains, weight_VH, objective, curriculum.mixture)
    return fused_loss(chains, weight_VH, objective, curriculum.mixture, fusion_for(policy.device))


def lm_head_weight(policy: Policy) -> Tensor:
    """[V, H]; UserError for an lm_head that is more than a matrix."""
    lm_head = policy.backbone.get_output_embeddings()
    if not isinstance(lm_head, nn.Linear) or lm_head.bias is not None:
        raise UserError("the loss needs an lm_head that is a matrix without bias; this policy's is not")
    return lm_head.weight


def loss_of(loss: ChainLoss) -> Mean:
    num_depths = loss.counted_NK.shape[1]
    return Mean(total=num_depths * loss.loss_N.detach().sum().item(), count=int(loss.counted_NK.sum()))


def overlaps_of(losses: Sequence[ChainLoss]) -> tuple[Mean, ...]:
    """Per depth, at the first temperature of the mixture, which is the rollouts'."""
    overlap_NK = torch.cat([one.statistics[0].overlap_NK.where(one.counted_NK, 0.0) for one in losses])
    counted_NK = torch.cat([one.counted_NK for one in losses])
    sums_K, counts_K = overlap_NK.sum(0).tolist(), counted_NK.sum(0).tolist()
    return tuple(Mean(total=total, count=count) for total, count in zip(sums_K, counts_K, strict=True))


def accepted_of(loss: ChainLoss, num_drafts: int) -> Mean:
    """Expected accepted drafts over the chains whose first ``num_drafts`` depths count."""
    statistics = loss.statistics[0]
    whole_N = loss.counted_NK[:, num_drafts - 1]
    picked = statistics.map(lambda values_NK: values_NK[whole_N, :num_drafts])
    accepted_N = expected_accepted_rejection(picked.overlap_NK, picked.draft_logprob_NK, picked.target_logprob_NK)
    return Mean(total=accepted_N.sum().item(), count=len(accepted_N))


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
