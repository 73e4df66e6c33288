"""Token sequences and chats from files: JSONL, Parquet, or a directory that `datasets` saved.

A row is ``{"tokens": [...], "is_model": [...]}``, which is taken as it is, or ``{"messages": [...]}``, which is
tokenised as the tasks' chats are, by the policy's template. An ``id`` is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bebop.errors import UserError
from bebop.rows import read_rows
from bebop.tasks.base import as_message
from bebop.tasks.chat import Chat, Transcript
from bebop.training.samples import Sample
from bebop.training.transcripts import transcript_at

SHAPE = '{"tokens": [...], "is_model": [...]} or {"messages": [{"role": ..., "content": ...}]}'


def read_samples(path: Path, open_chat: Callable[[], Chat]) -> list[Sample]:
    """Every row of the file; UserError naming the row that is neither form. ``open_chat`` is asked for where one is a
    chat."""
    rows = list(read_rows(path))
    has_chats = any(isinstance(row, Mapping) and "messages" in row for _, row in rows)
    chat = open_chat() if has_chats else None
    samples = [as_sample(row, where, chat) for where, row in rows]
    if len({one.id for one in samples}) < len(samples):
        raise UserError(f"{path} has two rows with the same id; give each its own, or none")
    return samples


def as_sample(row: Any, where: str, chat: Chat | None) -> Sample:
    if not isinstance(row, Mapping) or not ({"tokens", "is_model"} <= row.keys() or "messages" in row):
        raise UserError(f"{where} is not a row to learn from; write {SHAPE}")
    name = str(row.get("id", where))
    if chat is not None and "messages" in row:
        return Sample(id=name, transcript=tokenised(row["messages"], where, chat))
    tokens, is_model = row["tokens"], row["is_model"]
    is_sound = isinstance(tokens, list) and isinstance(is_model, list) and all(isinstance(one, int) for one in tokens)
    if not is_sound or len(tokens) != len(is_model):
        raise UserError(f"{where}: tokens and is_model must be lists of one length, of token ids and of true or false")
    return Sample(id=name, transcript=Transcript(tokens, [bool(one) for one in is_model]))


def tokenised(messages: Any, where: str, chat: Chat) -> Transcript:
    try:
        read = [as_message(one) for one in messages]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is not a chat; write {SHAPE}") from error
    return transcript_at(chat, read, where)
