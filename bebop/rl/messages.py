"""What the learner's process and a worker say to one another, as frames of JSON on a socket.

::

    learner -> worker    Start, then Play and Load in any order; the end of the stream means stop
    worker -> learner    Loaded (once started, and after every Load), Finished per episode, Failed before it gives up

Numbers keep their value (Python writes the shortest decimal that reads back equal). Nothing but data is ever sent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from bebop.engines.base import Completion
from bebop.rl.config import MTPConfig, RolloutConfig
from bebop.rl.jobs import Job
from bebop.rl.records import Busy
from bebop.tasks.base import Outcome
from bebop.tasks.episodes import EpisodePlan, Rollout, RolloutTurn
from bebop.tasks.registry import TaskChoice

_LENGTH_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Published weights: a safetensors file whose tensors are named as ``Engine.load_weights`` takes them."""

    version: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The first message to a worker."""

    policy: str
    """Name or directory of the policy that the run started from."""
    rollout: RolloutConfig
    mtp: MTPConfig
    tasks: tuple[TaskChoice, ...]
    seed: int
    ordered: bool
    """Whether equal jobs must give equal rollouts to the last bit."""
    weights: Weights | None
    """The newest weights; None: the policy as it is, version 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Play:
    """Jobs to be played after those that wait already."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Take these weights at the next round boundary."""

    weights: Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The worker samples with these weights from now on."""

    version: int
    held: dict[str, dict[str, str]]
    """``contract.held_digests`` of what the worker's engine samples with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayedTurn:
    given_tokens: tuple[int, ...]
    completion: Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """An episode has ended."""

    job: str
    attempt: int
    """Place of the episode in its job."""
    turns: tuple[PlayedTurn, ...]
    outcome: Outcome
    scoring_seconds: float
    generation: Busy
    """Of the engine, since the last episode that the worker reported."""

    def rollout(self, plan: EpisodePlan) -> Rollout:
        turns = (RolloutTurn(given_tokens=one.given_tokens, completion=one.completion) for one in self.turns)
        return Rollout(plan=plan, turns=tuple(turns), outcome=self.outcome, scoring_seconds=self.scoring_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The worker cannot go on for a reason that a person must mend."""

    sentence: str


Message = Start | Play | Load | Loaded | Finished | Failed
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in (Start, Play, Load, Loaded, Finished, Failed)
}


def encode(message: Message) -> bytes:
    kind = type(message).__name__
    return json.dumps([kind, _ADAPTERS[kind].dump_python(message, mode="json")]).encode()


def decode(frame: bytes) -> Message:
    kind, body = json.loads(frame)
    return _ADAPTERS[kind].validate_python(body)


class Channel:
    """Messages over a stream socket; any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """``OSError`` where the other side is gone."""
        frame = encode(message)
        with self._sending:
            self._connection.sendall(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)

    def receive(self) -> Message | None:
        """The next message; None where the other side has closed, or died in the middle of one."""
        header = self._read(_LENGTH_BYTES)
        frame = self._read(int.from_bytes(header, "big")) if header is not None else None
        return decode(frame) if frame is not None else None

    def close(self) -> None:
        """End both directions, also for a thread that is receiving."""
        with contextlib.suppress(OSError):  # the other side may have been faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, num_bytes: int) -> bytes | None:
        parts: list[bytes] = []
        while num_bytes:
            try:
                part = self._connection.recv(min(num_bytes, 1 << 20))
            except ConnectionError:
                return None
            except OSError as error:
                if error.errno == errno.EBADF:  # closed by another thread of ours between two reads
                    return None
                raise
            if not part:
                return None
            parts.append(part)
            num_bytes -= len(part)
        return b"".join(parts)
