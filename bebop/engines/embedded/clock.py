"""Where the time of a round goes."""

import time
from enum import Enum

import torch


class Phase(Enum):
    """Parts of the engine's time."""

    PREFILL = "prefill"
    DRAFT = "draft"
    VERIFY = "verify"
    SAMPLING = "sampling"
    BOOKKEEPING = "bookkeeping"


class PhaseClock:
    """Adds up seconds per phase.

    On an accelerator, kernels run behind the host: ``synchronise`` waits for them at every lap, which is truthful and
    costs speed. Without it, the waiting shows up in the phase that first needs a result.
    """

    def __init__(self, device: torch.device, synchronise: bool) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(Phase, 0.0)
        self._synchronise = synchronise and device.type == "cuda"
        self._since = time.perf_counter()

    def start(self) -> None:
        """What follows belongs to the next lap."""
        self._since = time.perf_counter()

    def lap(self, phase: Phase) -> None:
        """Everything since the last lap (or start) was ``phase``."""
        if self._synchronise:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] += now - self._since
        self._since = now
