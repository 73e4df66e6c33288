"""A sample of a run's transcripts, in a compact form for the page.

A line of ``transcripts.jsonl``::

    {"step", "task", "problem", "reward", "reason", "turns": [{"given": text, "tokens": [TOKEN]}]}

where a TOKEN is ``{"text", "source", "logprob", "entropy", "version", "draft_logprob", "overlap"}``.

The compact form keeps one list per field and turn. Everything in it was written by a model or a task, so it is data for
the page, never markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bebop.report.runlog import Episode

MAX_EPISODES = 48
"""Transcripts of a run that a page holds."""
MAX_TOKENS = 24_000
"""Tokens of a run that a page holds."""
SOURCES = {"drafted": "d", "corrected": "c", "bonus": "b", "sampled": "s"}
IMPOSSIBLE = -1000.0
"""Log-probability that stands for minus infinity, which the log spells as a text."""
NUMBERS = ("logprob", "draft_logprob", "overlap", "entropy")


def read_episodes(path: Path, notes: list[str]) -> tuple[tuple[Episode, ...], int]:
    """A sample spread evenly over the file, and how many transcripts the file has."""
    if not path.is_file():
        return (), 0
    offsets = line_offsets(path)
    chosen: list[Episode] = []
    broken = num_tokens = 0
    with path.open("rb") as file:
        for place in spread(len(offsets), MAX_EPISODES):
            file.seek(offsets[place])
            episode = compact(file.readline())
            if episode is None:
                broken += 1
                continue
            num_tokens += sum(len(turn["sources"]) for turn in episode.record["turns"])
            if num_tokens > MAX_TOKENS:
                break
            chosen.append(episode)
    if broken:
        notes.append(f"{path}: {broken} of the lines looked at are not transcripts and are left out.")
    return tuple(sorted(chosen, key=lambda one: one.step)), len(offsets)


def line_offsets(path: Path) -> list[int]:
    """Where every whole line starts."""
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                offsets.append(position)
            position += len(line)
    return offsets


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers below ``count``, ends first, then halfway between, and so on.

    A budget that runs out early then still leaves a sample of the whole.
    """
    step = max(1, math.ceil(count / wanted))
    places = list(range(0, count, step))
    if not places:
        return []
    order = [0, len(places) - 1]
    gaps = [(0, len(places) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if middle not in (low, high):
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [places[place] for place in dict.fromkeys(order)]


def compact(line: bytes) -> Episode | None:
    """None for a line that is not a transcript."""
    try:
        record = json.loads(line)
        turns = [compact_turn(turn) for turn in record["turns"]]
        return Episode(
            step=int(record["step"]),
            task=str(record["task"]),
            record={
                "problem": str(record.get("problem", "")),
                "reward": number(record.get("reward"), 4),
                "reason": str(record.get("reason", "")),
                "turns": turns,
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def compact_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """One string of source letters and a list per number; a number that no token has is left out."""
    tokens: Sequence[Mapping[str, Any]] = turn["tokens"]
    result: dict[str, Any] = {
        "given": str(turn.get("given", "")),
        "texts": [str(token["text"]) for token in tokens],
        "sources": "".join(SOURCES.get(str(token.get("source")), "?") for token in tokens),
        "versions": [number(token.get("version"), 0) for token in tokens],
    }
    for name in NUMBERS:
        values = [IMPOSSIBLE if token.get(name) == "-Infinity" else number(token.get(name), 4) for token in tokens]
        if any(value is not None for value in values):
            result[name] = values
    return result


def number(value: Any, digits: int) -> float | None:
    """A finite number, rounded; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), digits) if digits else round(value)
