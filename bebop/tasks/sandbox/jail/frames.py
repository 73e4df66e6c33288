"""Messages between the sandbox's parent and its first process: eight bytes of length, then JSON.

Read exactly, never ahead: a process that forks after the first message must not hold the second in a buffer.
"""

import json
import os


def send(fd: int, message) -> None:
    write_all(fd, pack(message))


def pack(message) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(8, "big") + body


def receive(fd: int):
    """The next message. EOFError if the other side has gone."""
    return json.loads(_read_exactly(fd, int.from_bytes(_read_exactly(fd, 8), "big")))


def unpack(data: bytes):
    """The first message in ``data``."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "big")])


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_exactly(fd: int, size: int) -> bytes:
    chunks = []
    while size:
        chunk = os.read(fd, min(size, 1 << 20))
        if not chunk:
            raise EOFError("the message ends early")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
