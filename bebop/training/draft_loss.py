"""From hidden states to the loss of the drafts along a batch's chains, and what a batch saw as sums.

Shapes: B rows, T tokens, N chains, K depths, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from bebop.core.acceptance import expected_accepted_rejection
from bebop.core.chains import ChainLoss, DraftChains, plain_loss
from bebop.core.curriculum import Curriculum
from bebop.core.fused import fused_loss, fusion_for
from bebop.core.objectives import Objective
from bebop.core.vocabulary_sample import VocabularySample, restricted
from bebop.errors import UserError
from bebop.metrics import Mean
from bebop.models.policy import Policy
from bebop.training.chain_plan import ChainPlan
from bebop.training.hidden import Hiddens
from bebop.training.unroll import unroll
from bebop.training.unroll_attention import LAYOUTS


def draft_chains(
    policy: Policy,
    hiddens: Hiddens,
    plan: ChainPlan,
    layout: str,
    *,
    recompute: bool = False,
    run: Callable[[Callable[[], Any]], Any] | None = None,
) -> DraftChains:
    """Unroll the head along the plan's chains and gather what the loss compares.

    ``run`` calls what applies the head; None = at once.
    """

    def unrolled() -> tuple[Tensor, ChainPlan]:
        made = unroll(policy, hiddens.draft_input_BTH, plan, LAYOUTS[layout], recompute=recompute)
        return made.states_NKH, made.plan

    mixed = policy.dtype != torch.float32
    with torch.autocast(policy.device.type, policy.dtype, enabled=mixed):
        states_NKH, unrolled_plan = run(unrolled) if run else unrolled()
    return DraftChains(
        draft_states_NKH=states_NKH.to(policy.dtype),
        target_states_PH=hiddens.target_BTH.flatten(0, 1),
        positions_NK=unrolled_plan.positions_NK,
        tokens_NK=unrolled_plan.labels_NK,
        depth_mask_NK=unrolled_plan.depth_mask_NK,
    )


def chain_loss(
    policy: Policy,
    chains: DraftChains,
    objective: Objective,
    curriculum: Curriculum,
    vocabulary: VocabularySample | None = None,
    *,
    fused: bool,
) -> ChainLoss:
    """The loss on the whole vocabulary, or on a sample of it (for a mixture of one temperature)."""
    weight_VH = lm_head_weight(policy)
    if vocabulary is not None:
        (temperature,) = curriculum.mixture.temperatures
        chains, weight_VH = restricted(chains, weight_VH, vocabulary, temperature)
    if not fused:
        return plain_loss(chains, weight_VH, objective, curriculum.mixture)
    return fused_loss(chains, weight_VH, objective, curriculum.mixture, fusion_for(policy.device))


def lm_head_weight(policy: Policy) -> Tensor:
    """[V, H]; UserError for an lm_head that is more than a matrix."""
    lm_head = policy.backbone.get_output_embeddings()
    if not isinstance(lm_head, nn.Linear) or lm_head.bias is not None:
        raise UserError("the loss needs an lm_head that is a matrix without bias; this policy's is not")
    return lm_head.weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Tallies:
    """What a step saw, as sums: they add up over micro-batches and processes."""

    loss: Mean
    overlaps: tuple[Mean, ...]
    accepted: Mean

    @classmethod
    def of(cls, losses: Sequence[ChainLoss], num_drafts: int) -> Tallies:
        return cls(
            loss=sum((loss_of(one) for one in losses), Mean()),
            overlaps=overlaps_of(losses),
            accepted=sum((accepted_of(one, num_drafts) for one in losses), Mean()),
        )

    def __add__(self, other: Tallies) -> Tallies:
        return Tallies(
            loss=self.loss + other.loss,
            overlaps=tuple(map(add, self.overlaps, other.overlaps)),
            accepted=self.accepted + other.accepted,
        )


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
