"""Causal attention for training.

PyTorch's kernel for attention on a CPU has a backward pass that in bfloat16 takes four to fifteen times as long as its
forward pass, where the processor's matrix products in that format are the fastest it has. There attention is explicit
products, which keep the probabilities for the gradient where they are small, and make them again where they are not.

Shapes: B rows, T positions, Q query heads, G key heads, R query heads per key head, D head size, S = R T.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KEPT_BYTES = 8 * 2**20
"""Probabilities of one call that are kept for the gradient: every layer keeps its own."""


def causal_attention(query_BQTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v over the positions up to each query's own, [B, Q, T, D]; autocast is obeyed."""
    query_BQTD, key_BGTD, value_BGTD = (as_autocast_wants(one) for one in (query_BQTD, key_BGTD, value_BGTD))
    if query_BQTD.device.type == "cpu" and query_BQTD.dtype == torch.bfloat16:
        by_products: Callable[..., Tensor] = _GradientByProducts.apply
        return by_products(query_BQTD, key_BGTD, value_BGTD, scale)
    return _fused(query_BQTD, key_BGTD, value_BGTD, scale)


class _GradientByProducts(torch.autograd.Function):
    """Forward by the fused kernel, or by products where the probabilities can be kept; backward by products."""

    @staticmethod
    def forward(ctx: Any, query_BQTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
        num_rows, num_heads, num_positions, _ = query_BQTD.shape
        if num_rows * num_heads * num_positions**2 * query_BQTD.element_size() <= KEPT_BYTES:
            probs_BGST = _probabilities(_folded(query_BQTD, key_BGTD), key_BGTD, num_positions, scale)
            out_BQTD = _unfolded(probs_BGST @ value_BGTD, num_positions)
        else:
            probs_BGST = None
            out_BQTD = _fused(query_BQTD, key_BGTD, value_BGTD, scale)
        ctx.save_for_backward(query_BQTD, key_BGTD, value_BGTD, out_BQTD, probs_BGST)
        ctx.scale = scale
        return out_BQTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BQTD, key_BGTD, value_BGTD, out_BQTD, probs_BGST = ctx.saved_tensors
        num_positions = key_BGTD.shape[2]
        query_BGSD, out_BGSD, grad_BGSD = (_folded(one, key_BGTD) for one in (query_BQTD, out_BQTD, gradients[0]))
        if probs_BGST is None:
            probs_BGST = _probabilities(query_BGSD, key_BGTD, num_positions, ctx.scale)
        value_grad_BGTD = probs_BGST.mT @ grad_BGSD
        mean_BGS1 = (grad_BGSD.float() * out_BGSD.float()).sum(-1, keepdim=True).to(grad_BGSD.dtype)
        scores_grad_BGST = (grad_BGSD @ value_BGTD.mT).sub_(mean_BGS1).mul_(probs_BGST).mul_(ctx.scale)
        query_grad_BGSD = scores_grad_BGST @ key_BGTD
        key_grad_BGTD = scores_grad_BGST.mT @ query_BGSD
        return _unfolded(query_grad_BGSD, num_positions), key_grad_BGTD, value_grad_BGTD, None


def _folded(heads_BQTD: Tensor, key_BGTD: Tensor) -> Tensor:
    """[B, G, S, D]: query heads of one key head become query positions, so that keys and values are read once and their
    gradients summed."""
    return heads_BQTD.unflatten(1, (key_BGTD.shape[1], -1)).flatten(2, 3)


def _unfolded(heads_BGSD: Tensor, num_positions: int) -> Tensor:
    """[B, Q, T, D]."""
    return heads_BGSD.unflatten(2, (-1, num_positions)).flatten(1, 2)


def _probabilities(query_BGSD: Tensor, key_BGTD: Tensor, num_positions: int, scale: float) -> Tensor:
    """[B, G, S, T]."""
    later_TT = torch.full((num_positions, num_positions), -math.inf, dtype=key_BGTD.dtype, device=key_BGTD.device)
    scores_BGST = (query_BGSD @ key_BGTD.mT).mul_(scale)
    scores_BGST.unflatten(2, (-1, num_positions)).add_(later_TT.triu_(1))
    return scores_BGST.softmax(-1)


def _fused(query_BQTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query_BQTD,
        key_BGTD,
        value_BGTD,
        is_causal=True,
        scale=scale,
        enable_gqa=query_BQTD.shape[1] != key_BGTD.shape[1],
    )


def as_autocast_wants(tensor: Tensor) -> Tensor:
    """In the format of an autocast in force, which does not reach into functions of our own."""
    return tensor.to(format_in_force(tensor))


def format_in_force(tensor: Tensor) -> torch.dtype:
    """That of an autocast on the tensor's device, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
