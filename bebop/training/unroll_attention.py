"""Whom a draft depth attends to in training: the layouts ``plain``, ``ttt`` and ``kvshare`` (spec, section 5).

====================  =====================================================================================
``plain``             depth k attends depth k of the anchors up to its own; what most trainers do
``ttt``               committed depth-1 keys up to the anchor, then the chain's own; what engines do when drafting
``kvshare``           committed depth-1 keys alone; the query advances and leaves no key
====================  =====================================================================================

The decoder layer computes queries, keys and values; ``unroll_attention`` is what it then calls. The record that decides
(an ``Attend``) travels where a mask would, so nothing about an unroll is kept in the modules.

Shapes: B rows, T committed positions, A queries of a row (T at depth 1, its anchors below), G key heads, R query heads
per key head, Q = G R query heads, D head size, M depths of a chain with keys of their own.
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


Attend = Callable[[Projected], Tensor]
"""One depth's attention: -> out_BQAD."""


class Layout(Protocol):
    """The attention of one unroll, depth by depth; made anew for every batch."""

    drafts_everywhere: bool
    """True: deeper depths must run at every position, because others attend there."""

    def first(self) -> Attend:
        """Depth 1, at every position of the row."""
        ...

    def next(self) -> Attend:
        """The depth after the last one asked for, at the anchors."""
        ...


class Plain:
    """Causal attention among the keys of the same depth."""

    drafts_everywhere = True

    def __init__(self, anchors_BA: Tensor) -> None:
        del anchors_BA

    def first(self) -> Attend:
        return causal

    def next(self) -> Attend:
        return causal


@dataclass(slots=True)
class Committed:
    """Attention to the depth-1 keys up to the anchor and, where chains keep keys, to the chain's own (``ttt``)."""

    anchors_BA: Tensor
    keeps_own: bool
    drafts_everywhere: bool = False
    _base: Projected | None = None
    _own: list[Projected] = field(default_factory=list)

    def first(self) -> Attend:
        def attend(projected: Projected) -> Tensor:
            self._base = projected
            return causal(projected)

        return attend

    def next(self) -> Attend:
        def attend(projected: Projected) -> Tensor:
            assert self._base is not None, "depth 1 comes first"
            if self.keeps_own:
                self._own.append(projected)
            return merged(projected, self._base, self._own, self.anchors_BA)

        return attend


def training_time_test(anchors_BA: Tensor) -> Layout:
    return Committed(anchors_BA, keeps_own=True)


def key_value_share(anchors_BA: Tensor) -> Layout:
    return Committed(anchors_BA, keeps_own=False)


LAYOUTS: Mapping[str, Callable[[Tensor], Layout]] = MappingProxyType(
    {"ttt": training_time_test, "plain": Plain, "kvshare": key_value_share}
)
"""Name -> maker of the layout for anchors at positions ``anchors_BA``."""


def causal(projected: Projected) -> Tensor:
    """Every position attends itself and those before it."""
    return F.scaled_dot_product_attention(
        projected.query_BQAD,
        projected.key_BGAD,
        projected.value_BGAD,
        is_causal=True,
        scale=projected.scale,
        enable_gqa=projected.query_BQAD.shape[1] != projected.key_BGAD.shape[1],
    )


def merged(projected: Projected, base: Projected, own: list[Projected], anchors_BA: Tensor) -> Tensor:
    """Softmax over the committed keys up to the anchor and the chain's own, one per query and depth."""
    query_BGRAD = projected.query_BGRAD * projected.scale
    scores_BGRAT = query_BGRAD @ base.key_BGAD[:, :, None].transpose(-1, -2)
    later_BAT = torch.arange(scores_BGRAT.shape[-1], device=anchors_BA.device) > anchors_BA[..., None]
    scores_BGRAT = scores_BGRAT.masked_fill(later_BAT[:, None, None], -math.inf)
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
