"""The RMSNorm modules that policies have: what they scale by, and how to run them quickly in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

from bebop.core.attention import format_in_force
from bebop.core.norm import rms_norm

_IS_ZERO_CENTRED: dict[type, bool] = {
    Qwen3_5RMSNorm: True,
    LlamaRMSNorm: False,
    Qwen2RMSNorm: False,
    Qwen3RMSNorm: False,
}


def is_known_norm(module: nn.Module) -> bool:
    return type(module) in _IS_ZERO_CENTRED


def norm_scale(module: nn.Module) -> Tensor:
    """What a known norm multiplies by, float32: its weight, or 1 more. Differentiable."""
    weight: Tensor = module.weight.float()  # pyright: ignore[reportAssignmentType, reportCallIssue]
    return 1.0 + weight if _IS_ZERO_CENTRED[type(module)] else weight


def norm_eps(module: nn.Module) -> float:
    some: Any = module
    return some.eps if hasattr(some, "eps") else some.variance_epsilon


@contextmanager
def quick_norms(model: nn.Module) -> Iterator[None]:
    """The model's known norms by ``core.norm`` inside the block, and as they come outside it.

    Under autocast they give its number format, so that the products that read one cast it once instead of each.
    """
    known = [module for module in model.modules() if is_known_norm(module)]
    for module in known:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in known:
            del module.forward


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    return rms_norm(x, norm_scale(module), norm_eps(module), format_in_force(x))
