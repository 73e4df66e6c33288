"""Muon: momentum whose update is orthogonalised, for matrices; AdamW for everything else.

Source: K. Jordan, "Muon: an optimizer for hidden layers" (2024); the update's scale, 0.2 sqrt(max(rows, columns)), is
that of arXiv 2502.16982, so that AdamW's learning rates fit. PyTorch's own Muon orthogonalises in bfloat16, which a
CPU without bfloat16 matrix instructions emulates a hundred times slower than float32; this one does so where the device
multiplies it, and in float32 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bebop.models.devices import recommended_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Groups with ``orthogonal=True`` take Muon's update, the others AdamW's."""

    def __init__(self, matrices: Iterable[Tensor], others: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        groups = [
            {"params": list(matrices), "orthogonal": True, "weight_decay": weight_decay},
            {"params": list(others), "orthogonal": False, "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; every parameter of a group that has a gradient."""
        assert closure is None, "the gradient is there already"
        for group in self.param_groups:
            change = orthogonal_change if group["orthogonal"] else adam_change
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(change(parameter.grad, self.state[parameter], group), alpha=group["lr"])


def orthogonal_change(gradient: Tensor, state: dict[str, Tensor], group: dict) -> Tensor:
    """Nesterov momentum, orthogonalised, scaled to the root mean square of an AdamW update."""
    momentum = state.setdefault("momentum", torch.zeros_like(gradient))
    momentum.mul_(group["momentum"]).add_(gradient)
    looked_ahead = gradient.add(momentum, alpha=group["momentum"])
    return orthogonalised(looked_ahead).mul_(0.2 * max(gradient.shape) ** 0.5)


def adam_change(gradient: Tensor, state: dict[str, Tensor], group: dict) -> Tensor:
    """Adam's update with bias correction."""
    first = state.setdefault("first", torch.zeros_like(gradient)).lerp_(gradient, 1 - group["betas"][0])
    second = state.setdefault("second", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - group["betas"][1])
    count = state.setdefault("count", torch.zeros((), dtype=torch.float32)).add_(1)
    corrected = [moment / (1 - beta**count) for moment, beta in zip((first, second), group["betas"], strict=True)]
    return corrected[0] / (corrected[1].sqrt() + group["eps"])


def orthogonalised(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The matrix with its singular values pushed towards 1 (between about 0.7 and 1.2), by Newton-Schulz iteration.

    ``dtype``: of the products; None takes what the device multiplies fastest. The result has the matrix's own.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix) / (matrix.norm() + 1e-7)
    x = x.to(dtype or recommended_dtype(matrix.device))
    for _ in range(NUM_ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
