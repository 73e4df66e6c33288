"""Rollouts laid out so that attempts at one problem run their common prompt through the backbone once.

The distinct tokens of a micro-batch lie end to end in one row. What a layer does to tokens one by one (projections,
norms, MLP) it does there, without padding. Attention alone needs whole rollouts: queries, keys and values are copied to
one padded row per rollout, its prompt included, and the results are copied back. Half to two thirds of a short task's
tokens are prompt, and they are computed once instead of once per attempt; nothing else changes.

Backbones with recurrent or windowed layers run on the padded rows themselves (``training.packing.can_be_packed``).

Shapes: U distinct tokens, B rollouts of a block, T tokens of the longest of them, N tokens that the policy wrote,
Q query heads, G key heads, D head size, F features of a token,
P positions of all blocks, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from bebop.core.attention import as_autocast_wants, causal_attention
from bebop.models.attention_choice import attending_by
from bebop.models.norms import quick_norms
from bebop.models.policy import Policy
from bebop.tasks.chat import Transcript
from bebop.training.hidden import Hiddens
from bebop.training.packing import can_be_packed
from bebop.training.transcripts import TokenBatch, pad

IMPLEMENTATION = "bebop_shared_prompts"
"""The name under which ``shared_attention`` is known to transformers."""

MAX_PADDING = 1.15
"""The longest rollout of a block is at most this many times as long as the shortest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rollouts of like length, one a row."""

    rows: TokenBatch
    source_BT: Tensor
    """int64: which distinct token stands there; 0 on padding, which nothing reads."""

    def to(self, device: torch.device) -> Block:
        return Block(rows=self.rows.to(device), source_BT=self.source_BT.to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Some rollouts as distinct tokens and as rows."""

    tokens_U: Tensor
    positions_U: Tensor
    """Within the rollout."""
    blocks: tuple[Block, ...]
    place_U: Tensor
    """Where in the blocks' positions, taken end to end, each distinct token is found (first)."""
    written_N: Tensor
    """The tokens that the policy wrote, rollout by rollout in the order of the blocks' rows."""
    before_N: Tensor
    """The distinct token before each of them, whose state predicts it."""

    def to(self, device: torch.device) -> Layout:
        return Layout(
            tokens_U=self.tokens_U.to(device),
            positions_U=self.positions_U.to(device),
            blocks=tuple(one.to(device) for one in self.blocks),
            place_U=self.place_U.to(device),
            written_N=self.written_N.to(device),
            before_N=self.before_N.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """The backbone's states on the distinct tokens, attached to the graph."""

    layout: Layout
    output_UH: Tensor
    """What enters the lm_head."""
    draft_UH: Tensor
    """What depth 1 of the head takes."""

    @property
    def before_NH(self) -> Tensor:
        """The states that predict the written tokens."""
        return F.embedding(self.layout.before_N, self.output_UH)

    def hiddens(self) -> Iterator[tuple[TokenBatch, Hiddens]]:
        """Block by block as rows, detached, for the training of a head."""
        for block in self.layout.blocks:
            yield (
                block.rows,
                Hiddens(
                    draft_input_BTH=self.draft_UH.detach()[block.source_BT],
                    target_BTH=self.output_UH.detach()[block.source_BT],
                ),
            )


def lay_out(transcripts: Sequence[Transcript]) -> Layout:
    """The layout of rollouts that are sorted by length."""
    prompts: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    positions: list[int] = []
    sources: list[list[int]] = []

    def append(some: Sequence[int], first_position: int) -> int:
        start = len(tokens)
        tokens.extend(some)
        positions.extend(range(first_position, first_position + len(some)))
        return start

    for one in transcripts:
        num_prompt = prompt_length(one)
        prompt, rest = tuple(one.tokens[:num_prompt]), one.tokens[num_prompt:]
        if prompt not in prompts:
            prompts[prompt] = append(prompt, 0)
        start = append(rest, num_prompt)
        shared = prompts[prompt]
        sources.append([*range(shared, shared + num_prompt), *range(start, start + len(rest))])
    written = [
        (one.tokens[place], source[place - 1])
        for one, source in zip(transcripts, sources, strict=True)
        for place, is_model in enumerate(one.is_model)
        if is_model
    ]
    blocks = blocks_of(transcripts, sources)
    return Layout(
        tokens_U=torch.tensor(tokens),
        positions_U=torch.tensor(positions),
        blocks=blocks,
        place_U=places_of(blocks, sources, len(tokens)),
        written_N=torch.tensor([token for token, _ in written], dtype=torch.long),
        before_N=torch.tensor([before for _, before in written], dtype=torch.long),
    )


def prompt_length(transcript: Transcript) -> int:
    """Tokens before the first one that the policy wrote."""
    return transcript.is_model.index(True) if any(transcript.is_model) else len(transcript.tokens)


def blocks_of(transcripts: Sequence[Transcript], sources: Sequence[list[int]]) -> tuple[Block, ...]:
    """Cut where the padding would grow; the order stays."""
    lengths = [len(one) for one in sources]
    cuts = [0]
    for number, length in enumerate(lengths):
        if length > MAX_PADDING * lengths[cuts[-1]]:
            cuts.append(number)
    blocks = []
    for start, end in pairwise([*cuts, len(lengths)]):
        rows = pad(transcripts[start:end])
        source_BT = torch.zeros_like(rows.tokens_BT)
        for row, source in enumerate(sources[start:end]):
            source_BT[row, : len(source)] = torch.tensor(source)
        blocks.append(Block(rows=rows, source_BT=source_BT))
    return tuple(blocks)


def places_of(blocks: Sequence[Block], sources: Sequence[list[int]], num_distinct: int) -> Tensor:
    """``Layout.place_U``."""
    places = [-1] * num_distinct
    left = iter(sources)
    start = 0
    for block in blocks:
        num_rows, width = block.source_BT.shape
        for _ in range(num_rows):
            for place, distinct in enumerate(next(left), start):
                if places[distinct] < 0:
                    places[distinct] = place
            start += width
    return torch.tensor(places, dtype=torch.long)


def run_layout(policy: Policy, layout: Layout, *, share: bool = True) -> States:
    """The backbone over the layout; ``share=False`` runs every row whole, the slow reference."""
    if share and can_be_packed(policy.config):
        with attending_by(IMPLEMENTATION, policy.config), quick_norms(policy.backbone):
            state = policy.run_backbone(
                layout.tokens_U[None],
                position_ids_BT=layout.positions_U[None],
                attention_options={"layout": layout},
            )
        return States(layout=layout, output_UH=state.hidden_BTH[0], draft_UH=state.draft_input_BTH[0])
    states = [policy.run_backbone(block.rows.tokens_BT) for block in layout.blocks]
    output_PH = torch.cat([one.hidden_BTH.flatten(0, 1) for one in states])
    draft_PH = torch.cat([one.draft_input_BTH.flatten(0, 1) for one in states])
    return States(
        layout=layout,
        output_UH=F.embedding(layout.place_U, output_PH),
        draft_UH=F.embedding(layout.place_U, draft_PH),
    )


def shared_attention(
    module: nn.Module,
    query_1QUD: Tensor,
    key_1GUD: Tensor,
    value_1GUD: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over distinct tokens: causal attention within every rollout.

    Of the options, ``layout`` and ``scaling`` matter.
    """
    layout: Layout = options["layout"]
    assert attention_mask is None, "a layout says who attends to whom"
    # Autocast leaves rotated queries and keys float32; what is copied is what attention takes.
    parts = [as_autocast_wants(one[0]).transpose(0, 1) for one in (query_1QUD, key_1GUD, value_1GUD)]
    features_UF = torch.cat([one.flatten(1) for one in parts], dim=1)
    sizes = [one[0].numel() for one in parts]
    # F.embedding is a gather of rows whose gradient adds up quickly, also where one row is read many times. One for all
    # blocks: each gather has a gradient as large as what it reads from.
    sources = [block.source_BT for block in layout.blocks]
    rows_PF = F.embedding(torch.cat([one.flatten() for one in sources]), features_UF)
    outputs = []
    for source_BT, rows in zip(sources, rows_PF.split([one.numel() for one in sources]), strict=True):
        query_BQTD, key_BGTD, value_BGTD = (
            one.view(*source_BT.shape, *part.shape[1:]).transpose(1, 2)
            for one, part in zip(rows.split(sizes, dim=-1), parts, strict=True)
        )
        out_BQTD = causal_attention(query_BQTD, key_BGTD, value_BGTD, options["scaling"])
        outputs.append(out_BQTD.transpose(1, 2).flatten(2).flatten(0, 1))
    out_UF = F.embedding(layout.place_U, torch.cat(outputs))
    return out_UF.unflatten(-1, (query_1QUD.shape[1], -1))[None], None


AttentionInterface.register(IMPLEMENTATION, shared_attention)
