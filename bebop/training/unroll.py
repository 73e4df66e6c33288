"""The head applied K times along every chain, in training: teacher-forced tokens, attention as the layout says.

Depth 1 runs at every position of the row, because its keys are what an engine has committed; deeper depths run at the
anchors alone (``plain`` excepted), one after the other without padding. Depth k takes the vector that depth k-1 handed
on, the embedding of token i + k and the rotary position i + k - 1, counted from the first token of its own sequence
(docs/math.md, "Alignment of training with drafting").

Shapes: B rows, T tokens, A anchors of a row, N chains that run, K depths, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bebop.models.head import HeadState, MTPHead
from bebop.models.policy import Policy
from bebop.training.chain_plan import ChainPlan, spread_to_every_position
from bebop.training.packing import positions_in_sequence
from bebop.training.unroll_attention import IMPLEMENTATION, Anchors, Attend, LayoutKind

RunHead = Callable[[Tensor, Tensor, Tensor, Attend], HeadState]
"""(hiddens, token embeddings, positions, attention) -> one depth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unrolled:
    """Draft states of every chain, in the order of ``plan``'s real anchors."""

    states_NKH: Tensor
    """What enters the lm_head."""
    plan: ChainPlan
    """The plan that was unrolled; ``plain`` spreads the anchors, which keeps the chains' order."""


def unroll(
    policy: Policy, draft_input_BTH: Tensor, plan: ChainPlan, kind: LayoutKind, *, recompute: bool = False
) -> Unrolled:
    """Unroll ``policy.head`` from the backbone's hiddens; gradients reach the head's parameters alone.

    ``recompute``: keep no activations within a depth and run it again in the backward pass.
    """
    head = policy.head
    assert head is not None, "a policy with a head"
    if kind.drafts_everywhere:
        plan = spread_to_every_position(plan)
    runs_BA = torch.ones_like(plan.is_real_BA) if kind.drafts_everywhere else plan.is_real_BA
    anchors = Anchors(places_BA=plan.anchors_BA, runs_BA=runs_BA, starts_BT=plan.starts_BT)
    layout = kind.make(anchors)
    run = recomputing(head) if recompute else running(head)
    everywhere = _first_depth(policy, run, draft_input_BTH, plan, layout.first())
    states_NH = [everywhere.output_BTH[anchors.rows_N, anchors.places_N]]
    recycle_NH = everywhere.recycle_BTH[anchors.rows_N, anchors.places_N]
    for depth in range(2, plan.num_depths + 1):
        embeds_NH = policy.embed(plan.tokens_after(depth)[runs_BA])
        positions_N = (plan.anchors_BA - plan.starts_BA + depth - 1)[runs_BA]
        state = run(recycle_NH[None], embeds_NH[None], positions_N[None], layout.next())
        states_NH.append(state.output_BTH[0])
        recycle_NH = state.recycle_BTH[0]
    states_NKH = torch.stack(states_NH, dim=1)
    return Unrolled(
        states_NKH=states_NKH[plan.is_real_BA[runs_BA]] if kind.drafts_everywhere else states_NKH, plan=plan
    )


def _first_depth(policy: Policy, run: RunHead, draft_input_BTH: Tensor, plan: ChainPlan, attend: Attend) -> HeadState:
    """Depth 1 at every position that has a next token."""
    starts_BT = torch.zeros_like(plan.tokens_BT) if plan.starts_BT is None else plan.starts_BT
    positions_BT = positions_in_sequence(starts_BT)[:, :-1]
    return run(draft_input_BTH[:, :-1], policy.embed(plan.tokens_BT[:, 1:]), positions_BT, attend)


def running(head: MTPHead) -> RunHead:
    """The head as it is; the attention of a depth takes the place of the mask that its layer hands on unread."""

    def run(hidden_BTH: Tensor, embeds_BTH: Tensor, positions_BT: Tensor, attend: Attend) -> HeadState:
        mask: Any = attend
        with attention_of_unrolls(head):
            return head(hidden_BTH, embeds_BTH, positions_BT, attention_mask=mask)

    return run


def recomputing(head: MTPHead) -> RunHead:
    """The same, keeping a depth's inputs alone for the backward pass."""
    plainly = running(head)

    def run(hidden_BTH: Tensor, embeds_BTH: Tensor, positions_BT: Tensor, attend: Attend) -> HeadState:
        def tensors(hidden_BTH: Tensor) -> tuple[Tensor, Tensor]:
            state = plainly(hidden_BTH, embeds_BTH, positions_BT, attend)
            return state.output_BTH, state.recycle_BTH

        output_BTH, recycle_BTH = checkpoint(tensors, hidden_BTH, use_reentrant=False)
        return HeadState(output_BTH=output_BTH, recycle_BTH=recycle_BTH)

    return run


@contextmanager
def attention_of_unrolls(head: MTPHead) -> Iterator[None]:
    """The head attends by ``unroll_attention`` inside the block and as before outside it."""
    before = head.config._attn_implementation
    head.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        head.config._attn_implementation = before
