"""Sequences laid end to end in rows, so that hardly anything is computed on padding.

Rows are as long as the longest sequence of the step, and shorter ones fill the gaps (first fit, longest first). What a
sequence sees ends at its own first token: ``starts_BT`` says where that is, positions count from there, and attention
is masked by it. Recurrent layers know no such mask, so a backbone that has them runs on padded rows instead.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from bebop.tasks.chat import Transcript
from bebop.training.transcripts import TokenBatch


class HasTranscript(Protocol):
    """Anything that is learned from as a sequence of tokens."""

    @property
    def transcript(self) -> Transcript: ...


Packed = TypeVar("Packed", bound=HasTranscript)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a sequence lies in a batch."""

    row: int
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack(Generic[Packed]):
    """A micro-batch: sequences, where they lie, and the rows that they make."""

    members: list[Packed]
    places: list[Place]
    """Of each member."""
    batch: TokenBatch


def packs(members: Sequence[Packed], token_budget: int) -> list[Pack[Packed]]:
    """Micro-batches of at most ``token_budget`` tokens, padding counted; a row is as long as the longest member."""
    lengths = [len(one.transcript.tokens) for one in members]
    width = max(lengths)
    rows = first_fit(lengths, width)
    per_batch = max(1, token_budget // width)
    return [
        laid_out([[members[number] for number in row] for row in rows[start : start + per_batch]])
        for start in range(0, len(rows), per_batch)
    ]


def single_rows(members: Sequence[Packed]) -> Pack[Packed]:
    """Every member in a row of its own."""
    return laid_out([[one] for one in members])


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Numbers of the sequences in each row: the longest first, each into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        row = next((row for row, left in enumerate(room) if left >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


def laid_out(rows: Sequence[Sequence[Packed]]) -> Pack[Packed]:
    """The rows as tensors, padded on the right with 0 to the longest."""
    width = max(sum(len(one.transcript.tokens) for one in row) for row in rows)
    shape = (len(rows), width)
    tokens_BT, is_target_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    starts_BT = torch.arange(width).repeat(len(rows), 1)
    members: list[Packed] = []
    places: list[Place] = []
    for number, row in enumerate(rows):
        start = 0
        for one in row:
            end = start + len(one.transcript.tokens)
            tokens_BT[number, start:end] = torch.tensor(one.transcript.tokens)
            is_target_BT[number, start:end] = torch.tensor(one.transcript.is_model)
            starts_BT[number, start:end] = start
            members.append(one)
            places.append(Place(row=number, start=start))
            start = end
    is_packed = len(members) > len(rows)
    batch = TokenBatch(tokens_BT=tokens_BT, is_target_BT=is_target_BT, starts_BT=starts_BT if is_packed else None)
    return Pack(members=members, places=places, batch=batch)


def positions_in_sequence(starts_BT: Tensor) -> Tensor:
    """Position of every token within its own sequence."""
    return torch.arange(starts_BT.shape[1], device=starts_BT.device) - starts_BT


def sees_BTT(starts_BT: Tensor) -> Tensor:
    """bool: whether a position (dim 1) attends to another (dim 2), which is of its own sequence and not later."""
    places_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    return (places_T <= places_T[:, None]) & (places_T >= starts_BT[..., None])


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderInputs:
    """What a transformers decoder is told beside the tokens; None leaves it to its defaults."""

    positions_BT: Tensor | None = None
    mask_B1TT: Tensor | None = None
    """Added to the attention scores."""


def decoder_inputs(batch: TokenBatch, dtype: torch.dtype) -> DecoderInputs:
    """Positions and mask of packed rows; nothing for rows of one sequence."""
    if batch.starts_BT is None:
        return DecoderInputs()
    sees_B1TT = sees_BTT(batch.starts_BT)[:, None]
    mask_B1TT = torch.zeros_like(sees_B1TT, dtype=dtype).masked_fill_(~sees_B1TT, torch.finfo(dtype).min)
    return DecoderInputs(positions_BT=positions_in_sequence(batch.starts_BT), mask_B1TT=mask_B1TT)


def can_be_packed(config: PreTrainedConfig) -> bool:
    """Whether the backbone mixes positions by full attention alone."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
