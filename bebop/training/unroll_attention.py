"""Whom a draft depth attends to in training: the layouts ``plain``, ``ttt`` and ``kvshare`` (docs/math.md).

====================  =====================================================================================
``plain``             depth k attends depth k of the anchors up to its own; what most trainers do
``ttt``               committed depth-1 keys up to the anchor, then the chain's own; what engines do when drafting
``kvshare``           committed depth-1 keys alone; the query advances and leaves no key
====================  =====================================================================================

All of these are keys of the anchor's own sequence, where a row holds several.

The decoder layer computes queries, keys and values; ``unroll_attention`` is what it then calls. The record that decides
(an ``Attend``) travels where a mask would, so nothing about an unroll is kept in the modules.

Shapes: B rows, T committed positions, A queries of a row (T at depth 1, its anchors below), G key heads, R query heads
per key head, Q = G R query heads, D head size, X heads of any kind, N chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from bebop.core.attention import causal_attention
from bebop.training.packing import sees_BTT

IMPLEMENTATION = "bebop_unroll"
"""The name under which ``unroll_attention`` is known to transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projected:
    """What the layer made of its inputs, rotary angles applied."""

    query_BQAD: Tensor
    key_BGAD: Tensor
    value_BGAD: Tensor
    scale: float

    @property
    def query_BGRAD(self) -> Tensor:
        return self.query_BQAD.unflatten(1, (self.key_BGAD.shape[1], -1))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Projected:
        return Projected(
            query_BQAD=change(self.query_BQAD),
            key_BGAD=change(self.key_BGAD),
            value_BGAD=change(self.value_BGAD),
            scale=self.scale,
        )


Attend = Callable[[Projected], Tensor]
"""One depth's attention: -> out_BQAD."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchors:
    """Where the chains of a batch begin; below depth 1 they run one after the other, without the rows' padding."""

    places_BA: Tensor
    runs_BA: Tensor
    """bool: whether there is such a chain."""
    starts_BT: Tensor | None
    """Where the sequence of each position begins, in rows that hold several."""

    @property
    def rows_N(self) -> Tensor:
        return self.runs_BA.nonzero(as_tuple=True)[0]

    @property
    def places_N(self) -> Tensor:
        return self.places_BA[self.runs_BA]

    def in_rows(self, heads_1XND: Tensor) -> Tensor:
        """[B, X, A, D]; zeros where there is no chain."""
        num_heads, _, size = heads_1XND.shape[1:]
        heads_BAXD = heads_1XND.new_zeros(*self.runs_BA.shape, num_heads, size)
        heads_BAXD[self.runs_BA] = heads_1XND[0].transpose(0, 1)
        return heads_BAXD.transpose(1, 2)

    def in_a_line(self, heads_BXAD: Tensor) -> Tensor:
        """[1, X, N, D]: the inverse of ``in_rows``."""
        return heads_BXAD.transpose(1, 2)[self.runs_BA].transpose(0, 1)[None]

    def hidden_BAT(self, num_committed: int) -> Tensor:
        """bool: the committed keys that an anchor may not attend to: later ones, and those of other sequences."""
        keys_T = torch.arange(num_committed, device=self.places_BA.device)
        hidden_BAT = keys_T > self.places_BA[..., None]
        if self.starts_BT is not None:
            hidden_BAT |= keys_T < self.starts_BT.gather(1, self.places_BA)[..., None]
        return hidden_BAT


class Layout(Protocol):
    """The attention of one unroll, depth by depth; made anew for every batch.

    An ``Attend`` may be called again with the same input: recomputation in the backward pass does.
    """

    def first(self) -> Attend:
        """Depth 1, at every position of the row."""
        ...

    def next(self) -> Attend:
        """The depth after the last one asked for, at the anchors in a line."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Causal attention among the keys of the same depth."""

    anchors: Anchors

    def first(self) -> Attend:
        return within_sequences(self.anchors.starts_BT)

    def next(self) -> Attend:
        attend_rows = within_sequences(self.anchors.starts_BT)

        def attend(projected: Projected) -> Tensor:
            return self.anchors.in_a_line(attend_rows(projected.mapped(self.anchors.in_rows)))

        return attend


@dataclass(slots=True)
class Committed:
    """Attention to the depth-1 keys up to the anchor and, where chains keep keys, to the chain's own (``ttt``)."""

    anchors: Anchors
    keeps_own: bool
    _base: Projected | None = None
    _hidden_BAT: Tensor | None = None
    _own: list[Projected | None] = field(default_factory=list)
    """By depth, from 2."""

    def first(self) -> Attend:
        attend_committed = within_sequences(self.anchors.starts_BT)

        def attend(projected: Projected) -> Tensor:
            if self._base is None:
                self._base = projected
                self._hidden_BAT = self.anchors.hidden_BAT(projected.key_BGAD.shape[2])
            return attend_committed(projected)

        return attend

    def next(self) -> Attend:
        index = len(self._own)
        self._own.append(None)

        def attend(projected: Projected) -> Tensor:
            assert self._base is not None and self._hidden_BAT is not None, "depth 1 comes first"
            mine = projected.mapped(self.anchors.in_rows)
            if self._own[index] is None:
                self._own[index] = mine
            earlier = [one for one in self._own[:index] if one is not None]
            own = [*earlier, mine] if self.keeps_own else []
            return self.anchors.in_a_line(merged(mine, self._base, own, self._hidden_BAT))

        return attend


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutKind:
    """A layout before there is a batch."""

    make: Callable[[Anchors], Layout]
    drafts_everywhere: bool = False
    """True: deeper depths must run at every position, because others attend there."""


LAYOUTS: Mapping[str, LayoutKind] = MappingProxyType(
    {
        "ttt": LayoutKind(make=lambda anchors: Committed(anchors, keeps_own=True)),
        "plain": LayoutKind(make=Plain, drafts_everywhere=True),
        "kvshare": LayoutKind(make=lambda anchors: Committed(anchors, keeps_own=False)),
    }
)


def within_sequences(starts_BT: Tensor | None) -> Attend:
    """Every position attends itself and those before it in its own sequence."""
    sees_B1TT = None if starts_BT is None else sees_BTT(starts_BT[:, :-1])[:, None]

    def attend(projected: Projected) -> Tensor:
        heads = (projected.query_BQAD, projected.key_BGAD, projected.value_BGAD)
        if sees_B1TT is None:
            return causal_attention(*heads, projected.scale)
        grouped = heads[0].shape[1] != heads[1].shape[1]
        return F.scaled_dot_product_attention(*heads, attn_mask=sees_B1TT, scale=projected.scale, enable_gqa=grouped)

    return attend


def merged(projected: Projected, base: Projected, own: list[Projected], hidden_BAT: Tensor) -> Tensor:
    """Softmax over the committed keys that are not hidden and the chain's own, one per query and depth."""
    query_BGRAD = projected.query_BGRAD * projected.scale
    scores_BGRAT = query_BGRAD @ base.key_BGAD[:, :, None].transpose(-1, -2)
    scores_BGRAT = scores_BGRAT.masked_fill_(hidden_BAT[:, None, None], -math.inf)
    num_committed = scores_BGRAT.shape[-1]
    own_scores = [(query_BGRAD * one.key_BGAD[:, :, None]).sum(-1, keepdim=True) for one in own]
    wide = torch.promote_types(query_BGRAD.dtype, torch.float32)
    probs = torch.cat([scores_BGRAT, *own_scores], dim=-1).softmax(-1, dtype=wide).to(query_BGRAD.dtype)
    out_BGRAD = probs[..., :num_committed] @ base.value_BGAD[:, :, None]
    for place, one in enumerate(own, start=num_committed):
        out_BGRAD = out_BGRAD + probs[..., place, None] * one.value_BGAD[:, :, None]
    return out_BGRAD.flatten(1, 2)


def unroll_attention(
    module: nn.Module, query_BQAD: Tensor, key_BGAD: Tensor, value_BGAD: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface; ``attention_mask`` is the depth's ``Attend``, of the options one matters."""
    attend: Attend = attention_mask
    projected = Projected(
        query_BQAD=query_BQAD,
        key_BGAD=key_BGAD,
        value_BGAD=value_BGAD,
        scale=options.get("scaling") or query_BQAD.shape[-1] ** -0.5,
    )
    return attend(projected).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, unroll_attention)
