"""What a fork of the server does: message in on descriptor 0, isolate, run, report out on descriptor 1."""

import contextlib
import os
import signal

from . import namespaces, seccomp, watch
from .frames import receive, send


def main(refusal: OSError | None) -> None:
    """``refusal``: why this fork is not in namespaces of its own, though it should be."""
    job = receive(0)
    os.chdir(job["directory"])
    if job["isolated"]:
        try:
            if refusal:
                raise refusal
            namespaces.enter(job["view"], job["limits"]["scratch_bytes"])
            seccomp.install()
        except OSError as error:
            send(watch.OWNER_FD, {"cannot": error.strerror or str(error)})
            return
    with contextlib.suppress(watch.OwnerGone, BrokenPipeError):
        send(watch.OWNER_FD, watch.run(job))
    if not job["isolated"]:
        os.killpg(0, signal.SIGKILL)  # no namespace ends with us: end the session's processes, ourselves included
    os._exit(0)
