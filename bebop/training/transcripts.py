"""Where the transcripts of supervised training come from, and how they become batches.

A source is a function of the step, so that a resumed run sees what an uninterrupted one would have seen. Transcripts
of a step are sorted by length and cut into micro-batches of a token budget, padded on the right: with a causal
backbone the padding changes nothing, no token sees another document, and recurrent (Gated DeltaNet) layers need no
special care.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bebop.errors import UserError
from bebop.rows import decoded, shuffled
from bebop.tasks.base import Message, Split, Task, as_message
from bebop.tasks.chat import Chat, Transcript
from bebop.tasks.turns import problem_of_turn

# Shapes: B transcripts of a micro-batch, T tokens of the longest of them.

TranscriptSource = Callable[[int], list[Transcript]]
"""step -> the transcripts of that step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Some transcripts as rows of tokens: one a row, or several end to end (``training.packing``)."""

    tokens_BT: Tensor
    """int64, padded on the right with 0."""
    is_target_BT: Tensor
    """bool: the token here is one the policy is to write."""
    starts_BT: Tensor | None = None
    """int64: where in its row the sequence of each position begins; padding is a sequence by token. None: one a row."""

    def to(self, device: torch.device) -> TokenBatch:
        starts_BT = None if self.starts_BT is None else self.starts_BT.to(device)
        return TokenBatch(
            tokens_BT=self.tokens_BT.to(device), is_target_BT=self.is_target_BT.to(device), starts_BT=starts_BT
        )

    @property
    def num_targets(self) -> int:
        return int(self.is_target_BT.sum())


def task_transcripts(
    tasks: Mapping[str, Task], turns: Sequence[str], chat: Chat, per_step: int, max_tokens: int
) -> TranscriptSource:
    """Demonstrations of the tasks' train splits as ``turns`` come round (``tasks.turns``), no problem twice."""

    def of_step(step: int) -> list[Transcript]:
        found = []
        for number in range(step * per_step, (step + 1) * per_step):
            name, index = problem_of_turn(number, turns)
            problem = tasks[name].problem(Split.TRAIN, index)
            shown = tasks[name].demonstration(problem, seed=0)
            found.append(chat.transcript(shown, num_given=len(problem.messages)))
        return [one for one in found if len(one.tokens) <= max_tokens]

    return of_step


def file_transcripts(path: Path, chat: Chat, per_step: int, max_tokens: int, seed: int) -> TranscriptSource:
    """Chats of a JSONL file (one ``{"messages": [{"role", "content"}, ...]}`` a line), in a new order every epoch."""
    read = (transcript_at(chat, messages, where) for where, messages in read_chats(path))
    chats = [one for one in read if len(one.tokens) <= max_tokens]
    if not any(any(one.is_model) for one in chats):
        raise UserError(f"{path} has no assistant turn within {max_tokens} tokens; nothing could be learned from it")

    def of_step(step: int) -> list[Transcript]:
        numbers = range(step * per_step, (step + 1) * per_step)
        return [chats[shuffled(len(chats), seed, number // len(chats))[number % len(chats)]] for number in numbers]

    return of_step


def transcript_at(chat: Chat, messages: Sequence[Message], where: str) -> Transcript:
    """The transcript of a file's chat; UserError naming the place of one that the template refuses."""
    try:
        return chat.transcript(messages)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def read_chats(path: Path) -> list[tuple[str, list[Message]]]:
    """(where, chat) for every chat of a JSONL file; UserError naming the line that is not one."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a JSONL file with one chat a line")
    return [
        (f"{path}:{number}", read_chat(line, f"{path}:{number}"))
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if line.strip()
    ]


def read_chat(line: bytes, where: str) -> list[Message]:
    text = decoded(line, where)
    try:
        return [as_message(one) for one in json.loads(text)["messages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{where} is not a chat; write {{"messages": [{{"role": ..., "content": ...}}]}}') from error


def micro_batches(transcripts: Sequence[Transcript], token_budget: int) -> list[TokenBatch]:
    """Cut into batches of at most ``token_budget`` tokens, padding counted; a longer transcript gets one of its own."""
    batches: list[TokenBatch] = []
    batch: list[Transcript] = []
    for one in sorted(transcripts, key=lambda one: len(one.tokens)):
        if batch and len(one.tokens) * (len(batch) + 1) > token_budget:
            batches.append(pad(batch))
            batch = []
        batch.append(one)
    return [*batches, pad(batch)] if batch else batches


def pad(transcripts: Sequence[Transcript]) -> TokenBatch:
    longest = max(len(one.tokens) for one in transcripts)
    tokens_BT = torch.zeros(len(transcripts), longest, dtype=torch.long)
    is_target_BT = torch.zeros(len(transcripts), longest, dtype=torch.bool)
    for row, one in enumerate(transcripts):
        tokens_BT[row, : len(one.tokens)] = torch.tensor(one.tokens)
        is_target_BT[row, : len(one.tokens)] = torch.tensor(one.is_model)
    return TokenBatch(tokens_BT=tokens_BT, is_target_BT=is_target_BT)
