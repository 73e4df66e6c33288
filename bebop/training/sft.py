"""Supervised fine-tuning on worked transcripts: the stage before head training and reinforcement learning.

::

    transcripts(step) -> packed micro-batches -> backbone -> cross-entropy on the model turns -> AdamW -> checkpoint

A policy that computes in bfloat16 is tuned in float32 weights under autocast, because updates are too small for
bfloat16 weights to add up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.models.policy import HeadChoice, Policy
from bebop.runs import Mean, RunDirectory
from bebop.tasks.chat import Transcript
from bebop.tasks.registry import TaskShare
from bebop.training.checkpoint import Trained, load_latest, save_checkpoint
from bebop.training.optimiser import OptimiserConfig, learning_rate, open_optimiser, update
from bebop.training.packing import can_be_packed, decoder_inputs, packs
from bebop.training.samples import Sample
from bebop.training.transcripts import TokenBatch, TranscriptSource, micro_batches

# Shapes: B rows, T tokens, H hidden size, N tokens the policy is to write, V vocabulary.


class DataConfig(ConfigModel):
    """What is learned from: worked transcripts of tasks, or a file of chats."""

    tasks: tuple[TaskShare, ...] = (TaskShare(name="math"), TaskShare(name="code"), TaskShare(name="agent"))
    """They take turns, transcript by transcript, each as often as its share."""
    chats: Path | None = None
    """JSONL of chats; takes the place of the tasks."""
    seed: int = 0
    per_step: int = Field(default=96, ge=1)
    """Transcripts per update."""
    max_tokens: int = Field(default=512, ge=2)
    """Longer transcripts are left out."""
    thinking: bool | None = None
    """Whether turns are headed as those of a policy that thinks before it answers, where its chat template has a switch
    for that; none: as the template has it."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens (with padding) that go through the backbone at once; gradients of the parts add up to one update."""


class TrainSFT(ConfigModel):
    """`bebop train-sft`."""

    policy: str
    """Name or directory of the policy to tune."""
    head: HeadChoice = "auto"
    """The checkpoint's own head is kept as it is; ``fresh`` adds one, ``none`` leaves it away."""
    output: Path
    """Directory of the tuned policy; the name smollm2-sft stands for its place in the cache."""
    run: Path
    """Run directory: metrics, checkpoints, provenance."""
    steps: int = Field(default=1000, ge=1)
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    dtype: str = "auto"
    """float32, bfloat16, or auto: what this machine multiplies fastest."""
    device: str = "auto"
    checkpoint_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=10, ge=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one update did."""

    step: int
    loss: Mean
    """Nats, per token the policy is to write."""
    correct: Mean
    """Share of those tokens that were the most likely ones."""
    grad_norm: float
    num_tokens: int
    """Tokens that went through the backbone, without padding."""
    seconds: float


def train_sft(
    config: TrainSFT, policy: Policy, source: TranscriptSource, run: RunDirectory, show: Callable[[StepReport], None]
) -> None:
    """Tune ``policy.backbone`` in place, resuming where the run's last checkpoint stands; it becomes float32."""
    compute_dtype = policy.dtype
    policy.backbone.float()
    parameters = dict(policy.backbone.named_parameters())
    trained = Trained(parameters, open_optimiser(parameters.items(), config.optimiser))
    first = load_latest(run.checkpoints_path, trained)
    policy.backbone.train()
    is_mixed = compute_dtype != torch.float32
    with run.metrics_writer(keep_through=first) as metrics:
        for step in range(first, config.steps):
            with torch.autocast(policy.device.type, compute_dtype, enabled=is_mixed):
                report = train_step(config, policy, source(step), trained.optimiser, step)
            show(report)
            if report.step % config.log_every == 0 or report.step == config.steps:
                metrics.write(report.step, as_metrics(report))
            if report.step % config.checkpoint_every == 0 or report.step == config.steps:
                save_checkpoint(run.checkpoints_path, report.step, trained)
    policy.backbone.eval()


def train_step(
    config: TrainSFT,
    policy: Policy,
    transcripts: Sequence[Transcript],
    optimiser: torch.optim.Optimizer,
    step: int,
) -> StepReport:
    """One update on the transcripts of ``step``."""
    started = time.perf_counter()
    batches = batches_of(policy, transcripts, config.data.micro_batch_tokens)
    num_targets = sum(batch.num_targets for batch in batches)
    if num_targets == 0:
        raise UserError(f"step {step} has no token to learn; raise data.max_tokens")
    loss, correct = Mean(), Mean()
    for batch in batches:
        losses_N, hits_N = token_losses(policy, batch.to(policy.device))
        (losses_N.sum() / num_targets).backward()
        loss += Mean(total=losses_N.sum().item(), count=len(losses_N))
        correct += Mean(total=hits_N.sum().item(), count=len(hits_N))
    norm = update(optimiser, learning_rate(step, config.steps, config.optimiser), config.optimiser.max_grad_norm)
    if not (math.isfinite(loss.value) and math.isfinite(norm)):
        raise UserError(
            f"the loss or gradient of step {step} is not finite; lower optimiser.lr and resume from the last checkpoint"
        )
    return StepReport(
        step=step + 1,
        loss=loss,
        correct=correct,
        grad_norm=norm,
        num_tokens=sum(len(one.tokens) for one in transcripts),
        seconds=time.perf_counter() - started,
    )


def batches_of(policy: Policy, transcripts: Sequence[Transcript], token_budget: int) -> list[TokenBatch]:
    """Packed rows, or one transcript a row where the backbone would carry state from one into the next."""
    if not transcripts or not can_be_packed(policy.config):
        return micro_batches(transcripts, token_budget)
    members = [Sample(id=str(number), transcript=one) for number, one in enumerate(transcripts)]
    return [pack.batch for pack in packs(members, token_budget)]


def token_losses(policy: Policy, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy and hit of every token the policy is to write; logits exist for those alone."""
    given = decoder_inputs(batch, policy.dtype)
    hidden_BTH = policy.run_backbone(
        batch.tokens_BT, position_ids_BT=given.positions_BT, attention_mask=given.mask_B1TT
    ).hidden_BTH
    wanted_BT = batch.is_target_BT[:, 1:]
    if batch.starts_BT is not None:
        # What opens a sequence follows from nothing, and not from the end of the one before it.
        wanted_BT = wanted_BT & (batch.starts_BT[:, 1:] == batch.starts_BT[:, :-1])
    logits_NV = policy.logits(hidden_BTH[:, :-1][wanted_BT]).float()
    targets_N = batch.tokens_BT[:, 1:][wanted_BT]
    losses_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return losses_N, logits_NV.argmax(-1) == targets_N


def as_metrics(report: StepReport) -> dict[str, float | Mean]:
    return {
        "sft/loss": report.loss,
        "sft/correct": report.correct,
        "sft/grad_norm": report.grad_norm,
        "time/tokens_per_second": report.num_tokens / report.seconds,
    }
