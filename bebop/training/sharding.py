"""Tensors that several processes hold in shards (FSDP2), and the same tensors whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All shards together, detached; every process must ask."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def laid_like(whole: Tensor, pattern: Tensor) -> Tensor:
    """A copy on ``pattern``'s device, in shards where ``pattern`` is and has its shape; every process must ask."""
    copied = whole.to(pattern.device, copy=True)
    if not isinstance(pattern, DTensor) or whole.shape != pattern.shape:
        return copied
    return distribute_tensor(copied, pattern.device_mesh, pattern.placements)
