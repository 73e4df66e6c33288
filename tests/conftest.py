"""What holds for every test: one thread, no hub, no network."""

import ipaddress
import os
import socket
from collections.abc import Iterator

import pytest
import tqdm

# Before any test imports torch or transformers. Two test processes with many threads each would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Some tests fork. A bar that is slow to end starts a thread which takes tqdm's lock now and then, and a child that was
# forked while it is taken waits for ever at its first bar.
tqdm.tqdm.monitor_interval = 0
# A fork loses PyTorch's pool of threads. Threads that load weights would each renew it, and now and then collide.
os.register_at_fork(after_in_child=lambda: os.environ.update(HF_DEACTIVATE_ASYNC_LOAD="1"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections leave this machine in no test; loopback and Unix sockets are free."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: tuple[str, int]) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            raise AssertionError(f"a test tried to connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
    yield


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
