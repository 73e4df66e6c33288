"""How vLLM lays out tensors, against how checkpoints store them: merged projections, padding, packed weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

# Merged module -> the checkpoint's modules, each with the number of output slices it takes.
_MERGED: dict[str, tuple[tuple[str, int], ...]] = {
    "qkv_proj": (("q_proj", 1), ("k_proj", 1), ("v_proj", 1)),
    "gate_up_proj": (("gate_proj", 1), ("up_proj", 1)),
    "in_proj_qkvz": (("in_proj_qkv", 3), ("in_proj_z", 1)),
    "in_proj_ba": (("in_proj_b", 1), ("in_proj_a", 1)),
}
_PROBE_ROWS = 1024
"""Rows of the identity that are sent through a packed layer at a time."""


def apart(name: str, value: Tensor, sizes: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """A tensor of vLLM as the checkpoint's tensors; ``sizes`` are the output slices of the module it belongs to."""
    path, _, leaf = name.rpartition(".")
    parent, _, module = path.rpartition(".")
    parts = _MERGED.get(module)
    if parts is None:
        yield name, value
        return
    assert len(sizes) == sum(count for _, count in parts), f"{name} has slices {list(sizes)}"
    slices = iter(value.split(list(sizes)))
    for part, count in parts:
        yield f"{parent}.{part}.{leaf}".removeprefix("."), torch.cat([next(slices) for _ in range(count)])


def is_packed_head(module: nn.Module) -> bool:
    """Whether this is an lm_head that computes with a copy of its weight, packed for the CPU."""
    return hasattr(module, "cpu_linear") and type(module).__name__ == "ParallelLMHead"


def readable(module: nn.Module, leaf: str, parameter: Tensor) -> Tensor:
    """What a module computes with, as the checkpoint has it: unpacked, without the padding of the vocabulary."""
    unpacked = getattr(module, "_cpu_unpacked_conv_weight", None)
    if leaf == "weight" and unpacked is not None:
        return unpacked.unsqueeze(1)
    packed = hasattr(module, "cpu_linear") and (parameter.numel() == 0 or is_packed_head(module))
    value = _probed(module) if leaf == "weight" and packed else parameter
    size = getattr(module, "org_vocab_size", None)
    return value if size is None else value[:size]


def _probed(module: nn.Module) -> Tensor:
    """The weight [N, H] of a linear layer that keeps it packed for the CPU: what it makes of the identity, exactly.

    Each output is one weight plus zeros, so no rounding happens; the sign of a zero is lost.
    """
    weight = module.get_parameter("weight")
    width = int(getattr(module, "input_size", 0) or module.embedding_dim)  # type: ignore[arg-type]
    columns = [
        module.cpu_linear(rows, weight, None)  # type: ignore[operator]
        for rows in torch.eye(width, dtype=weight.dtype).split(_PROBE_ROWS)
    ]
    return torch.cat(columns).T.contiguous()
