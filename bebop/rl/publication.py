"""Publishing weights: a file in memory that workers read, written whole under its version's name."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from bebop.files import atomic_file
from bebop.rl.messages import Weights

SHARED_MEMORY = Path("/dev/shm")
COPIES = 3
"""The version in use, the one being written, and one to spare."""


class WeightStore:
    """A directory of published weights: in memory where there is room, else in the run's directory."""

    def __init__(self, run: Path, num_bytes: int) -> None:
        """``num_bytes``: size of the weights. What an earlier process of this run left behind is deleted."""
        in_memory = memory_directory(run)
        shutil.rmtree(in_memory, ignore_errors=True)
        self.directory = in_memory if has_room(SHARED_MEMORY, COPIES * num_bytes) else run / "weights"
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o700)

    def write(self, version: int, tensors: Mapping[str, Tensor]) -> Weights:
        path = self.directory / f"{version:08d}.safetensors"
        with atomic_file(path) as part:
            save_file(without_aliases(tensors), part)
        return Weights(version=version, path=str(path))

    def keep_only(self, weights: Weights) -> None:
        """Delete the other versions, when every worker has this one."""
        for path in self.directory.iterdir():
            if path != Path(weights.path):
                path.unlink()

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def memory_directory(run: Path) -> Path:
    """Where the weights of the run in this directory are published if there is room, the same after every start."""
    return SHARED_MEMORY / ("bebop-" + hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16])


def has_room(directory: Path, num_bytes: int) -> bool:
    return directory.is_dir() and shutil.disk_usage(directory).free > num_bytes


def without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for tensors that are the same memory (a tied lm_head): whoever loads it has them tied as well."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr(), name)
    return {name: tensors[name].detach().contiguous() for name in first.values()}
