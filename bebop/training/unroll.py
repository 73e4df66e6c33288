"""The head applied K times along every chain, in training: teacher-forced tokens, attention as the layout says.

Depth 1 runs at every position of the row, because its keys are what an engine has committed; deeper depths run at the
anchors alone (``plain`` excepted). Depth k takes the vector that depth k-1 handed on, the embedding of token i + k and
the rotary position i + k - 1 (spec, section 5, "Alignment").

Shapes: B rows, T tokens, A anchors of a row, N chains, K depths, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bebop.models.head import HeadState, MTPHead
from bebop.models.policy import Policy
from bebop.training.chain_plan import ChainPlan, spread_to_every_position
from bebop.training.unroll_attention import IMPLEMENTATION, Attend, Layout

MakeLayout = Callable[[Tensor], Layout]
"""anchors_BA -> the layout of one unroll."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unrolled:
    """Draft states of every chain, in the order of ``plan``'s real anchors."""

    states_NKH: Tensor
    """What enters the lm_head."""
    plan: ChainPlan
    """The plan that was unrolled; ``plain`` spreads the anchors, which keeps the chains' order."""


def unroll(policy: Policy, draft_input_BTH: Tensor, plan: ChainPlan, make_layout: MakeLayout) -> Unrolled:
    """Unroll ``policy.head`` from the backbone's hiddens; gradients reach the head's parameters alone."""
    head = policy.head
    assert head is not None, "a policy with a head"
    layout = make_layout(plan.anchors_BA)
    if layout.drafts_everywhere:
        plan = spread_to_every_position(plan)
    with attention_of_unrolls(head):
        state = _first_depth(policy, head, draft_input_BTH, plan, layout.first())
        states_BAH = [state.output_BTH]
        for depth in range(2, plan.num_depths + 1):
            state = _next_depth(policy, head, state.recycle_BTH, plan, (depth, layout.next()))
            states_BAH.append(state.output_BTH)
    return Unrolled(states_NKH=torch.stack(states_BAH, dim=2)[plan.is_real_BA], plan=plan)


def _first_depth(policy: Policy, head: MTPHead, draft_input_BTH: Tensor, plan: ChainPlan, attend: Attend) -> HeadState:
    """Depth 1 at every position that has a next token, then the anchors' share of it."""
    num_rows, num_positions = plan.tokens_BT.shape[0], plan.tokens_BT.shape[1] - 1
    positions_BT = torch.arange(num_positions, device=plan.tokens_BT.device).expand(num_rows, -1)
    embeds_BTH = policy.embed(plan.tokens_BT[:, 1:])
    state = head(draft_input_BTH[:, :-1], embeds_BTH, positions_BT, attention_mask=as_mask(attend))
    rows_B1 = torch.arange(num_rows, device=plan.tokens_BT.device)[:, None]
    return HeadState(
        output_BTH=state.output_BTH[rows_B1, plan.anchors_BA],
        recycle_BTH=state.recycle_BTH[rows_B1, plan.anchors_BA],
    )


def _next_depth(
    policy: Policy, head: MTPHead, recycle_BAH: Tensor, plan: ChainPlan, depth: tuple[int, Attend]
) -> HeadState:
    """One deeper depth at the anchors."""
    number, attend = depth
    embeds_BAH = policy.embed(plan.tokens_after(number))
    return head(recycle_BAH, embeds_BAH, plan.anchors_BA + number - 1, attention_mask=as_mask(attend))


def as_mask(attend: Attend) -> Any:
    """The attention of a depth, in the place of the mask that the decoder layer hands on unread."""
    return attend


@contextmanager
def attention_of_unrolls(head: MTPHead) -> Iterator[None]:
    """The head attends by ``unroll_attention`` inside the block and as before outside it."""
    before = head.config._attn_implementation
    head.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        head.config._attn_implementation = before
