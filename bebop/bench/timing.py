"""The clock of the benches, and how their repetitions are summed up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch


def now(device: torch.device) -> float:
    """Seconds, when the device is done. On one CPU thread processor time, which other programs disturb least."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
