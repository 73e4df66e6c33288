"""The process of a rollout worker: ``python -m bebop.rl.worker FD``, with a socket to the learner as descriptor FD.

Two threads: one receives, and takes new weights at once; the other plays. The process ends with the stream, so a
learner that is killed leaves no workers behind.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator

from bebop.errors import UserError
from bebop.rl.jobs import Job
from bebop.rl.messages import Channel, Failed, Load, Play, Start
from bebop.rl.rollout_worker import RolloutWorker

Arrivals = queue.SimpleQueue[tuple[Job, ...]]
"""The jobs of one message stay together: what a batch is made of must not depend on when a thread woke up."""


def main() -> None:
    threading.excepthook = end_process
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    start = channel.receive()
    if start is None:
        return
    assert isinstance(start, Start)
    try:
        serve(RolloutWorker(start), channel)
    except UserError as error:
        channel.send(Failed(sentence=str(error)))


def serve(worker: RolloutWorker, channel: Channel) -> None:
    """Play what arrives, until the stream ends."""
    channel.send(worker.loaded())
    arrivals: Arrivals = queue.SimpleQueue()
    threading.Thread(target=receive, args=(worker, channel, arrivals), daemon=True).start()
    while True:
        # Waiting must not happen inside the engine's stream, which holds off new weights during a round.
        first = arrivals.get()
        for finished in worker.play(arriving(first, arrivals)):
            channel.send(finished)


def arriving(first: tuple[Job, ...], arrivals: Arrivals) -> Iterator[Job | None]:
    """The jobs of the first message, then those that have come meanwhile; None where there are none."""
    yield from first
    while True:
        try:
            yield from arrivals.get_nowait()
        except queue.Empty:
            yield None


def receive(worker: RolloutWorker, channel: Channel, arrivals: Arrivals) -> None:
    """Take messages as they come. The end of the stream ends the process, whatever the other thread is doing."""
    try:
        while (message := channel.receive()) is not None:
            if isinstance(message, Play):
                arrivals.put(message.jobs)
            else:
                assert isinstance(message, Load)
                channel.send(worker.load(message.weights))
    except UserError as error:
        channel.send(Failed(sentence=str(error)))
    os._exit(0)


def end_process(failure: threading.ExceptHookArgs) -> None:
    """A process with one thread left would look alive."""
    assert failure.exc_value is not None
    sys.excepthook(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
