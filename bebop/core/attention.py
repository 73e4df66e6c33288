"""Causal attention for training.

PyTorch's kernel for attention on a CPU has a backward pass that in bfloat16 takes four to fifteen times as long as its
forward pass, where the processor's matrix products in that format are the fastest it has. There the gradient is
computed by explicit products.

Shapes: B rows, T positions, Q query heads, G key heads, R query heads per key head, D head size, S = R T.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(query_BQTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v over the positions up to each query's own, [B, Q, T, D]; autocast is obeyed."""
    query_BQTD, key_BGTD, value_BGTD = (as_autocast_wants(one) for one in (query_BQTD, key_BGTD, value_BGTD))
    if query_BQTD.device.type == "cpu" and query_BQTD.dtype == torch.bfloat16:
        by_products: Callable[..., Tensor] = _GradientByProducts.apply
        return by_products(query_BQTD, key_BGTD, value_BGTD, scale)
    return _fused(query_BQTD, key_BGTD, value_BGTD, scale)


class _GradientByProducts(torch.autograd.Function):
    """The fused forward pass; backward, the probabilities are computed again and multiplied out."""

    @staticmethod
    def forward(ctx: Any, query_BQTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
        out_BQTD = _fused(query_BQTD, key_BGTD, value_BGTD, scale)
        ctx.save_for_backward(query_BQTD, key_BGTD, value_BGTD, out_BQTD)
        ctx.scale = scale
        return out_BQTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BQTD, key_BGTD, value_BGTD, out_BQTD = ctx.saved_tensors
        num_groups, num_positions = key_BGTD.shape[1:3]
        # Query heads of one key head become query positions: keys and values are read once, their gradients summed.
        query_BGSD, out_BGSD, grad_BGSD = (
            one.unflatten(1, (num_groups, -1)).flatten(2, 3) for one in (query_BQTD, out_BQTD, gradients[0])
        )
        probs_BGST = _probabilities(query_BGSD, key_BGTD, num_positions, ctx.scale)
        value_grad_BGTD = probs_BGST.mT @ grad_BGSD
        mean_BGS1 = (grad_BGSD.float() * out_BGSD.float()).sum(-1, keepdim=True).to(grad_BGSD.dtype)
        scores_grad_BGST = (grad_BGSD @ value_BGTD.mT).sub_(mean_BGS1).mul_(probs_BGST).mul_(ctx.scale)
        query_grad_BGSD = scores_grad_BGST @ key_BGTD
        key_grad_BGTD = scores_grad_BGST.mT @ query_BGSD
        query_grad_BQTD = query_grad_BGSD.unflatten(2, (-1, num_positions)).flatten(1, 2)
        return query_grad_BQTD, key_grad_BGTD, value_grad_BGTD, None


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
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
