"""Decoder layers in few operations, for small float32 models whose time goes into dispatch.

transformers' modules spend 80 to 100 operations per layer and token step; at the sizes a CPU serves, most of the time
is spent getting from one to the next. Here the same weights take about 40: queries and keys share norm and rotation,
norms are four operations, residuals ride on the matrix products. The modules stay the reference: prefill uses them,
``EmbeddedOptions.lean=False`` uses them everywhere, and the tests compare the two.

Legend: B rows, T tokens of a row, N = B T, H hidden size, A query heads, G key heads, R = A + G, D head size,
L keys, I intermediate size, X = A D, P positions.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

from bebop.engines.embedded.cache import SlotCache

_IS_GATED: dict[type, bool] = {
    Qwen3_5DecoderLayer: True,
    LlamaDecoderLayer: False,
    Qwen2DecoderLayer: False,
    Qwen3DecoderLayer: False,
}
_IS_ZERO_CENTRED: dict[type, bool] = {
    Qwen3_5RMSNorm: True,
    LlamaRMSNorm: False,
    Qwen2RMSNorm: False,
    Qwen3RMSNorm: False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Angles:
    """Cosines and sines [N, 1, D] of whole heads: 1 and 0 past the rotated part, first half of sines negative."""

    cos_N1D: Tensor
    sin_N1D: Tensor
    num_rotated: int

    def at(self, positions_N: Tensor) -> "Angles":
        """The angles of some positions, where this is a table by position."""
        return Angles(
            cos_N1D=self.cos_N1D[positions_N], sin_N1D=self.sin_N1D[positions_N], num_rotated=self.num_rotated
        )

    def rotate(self, heads_NRD: Tensor) -> Tensor:
        """Rotary embedding of queries and keys."""
        half = self.num_rotated // 2
        parts = [heads_NRD[..., half : 2 * half], heads_NRD[..., :half], heads_NRD[..., 2 * half :]]
        return torch.addcmul(heads_NRD * self.cos_N1D, torch.cat(parts, dim=-1), self.sin_N1D)


def make_angles(cos_PD: Tensor, sin_PD: Tensor, head_dim: int) -> Angles:
    """A table by position from transformers' angles, which cover the rotated part alone."""
    num_rotated = cos_PD.shape[1]
    signed_PD = torch.cat([-sin_PD[:, : num_rotated // 2], sin_PD[:, num_rotated // 2 :]], dim=1)
    padding = (0, head_dim - num_rotated)
    return Angles(
        cos_N1D=F.pad(cos_PD, padding, value=1.0)[:, None],
        sin_N1D=F.pad(signed_PD, padding)[:, None],
        num_rotated=num_rotated,
    )


class LeanNorm:
    """RMSNorm as x / hypot(|x|, sqrt(size eps)) times a weight that has sqrt(size) and the 1 of (1 + w) in it."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._scale = self._floor = torch.empty(0)
        self.refresh()

    def refresh(self) -> None:
        """Take over the module's weight as it is now."""
        weight: Tensor = self._module.weight.detach()
        eps = self._module.eps if hasattr(self._module, "eps") else self._module.variance_epsilon
        size = weight.shape[0]
        self._scale = (1.0 + weight if _IS_ZERO_CENTRED[type(self._module)] else weight) * math.sqrt(size)
        self._floor = weight.new_tensor(math.sqrt(size * eps))

    @property
    def scale(self) -> Tensor:
        """The weight that multiplies x / hypot(|x|, floor)."""
        return self._scale

    def over_length(self, x: Tensor) -> Tensor:
        """x / hypot(|x|, floor)."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor)

    def __call__(self, x: Tensor) -> Tensor:
        return self.over_length(x) * self._scale


class LeanFeedForward:
    """Second half of a decoder layer: x + mlp(norm(x))."""

    def __init__(self, layer: nn.Module) -> None:
        self._mlp: Any = layer.mlp
        self.norm = LeanNorm(layer.post_attention_layernorm)  # pyright: ignore[reportArgumentType]

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        mlp, normed_NH = self._mlp, self.norm(hidden_NH)
        inner_NI = F.silu(F.linear(normed_NH, mlp.gate_proj.weight)).mul_(F.linear(normed_NH, mlp.up_proj.weight))
        return torch.addmm(hidden_NH, inner_NI, mlp.down_proj.weight.t())


class LeanLayer:
    """A decoder layer of softmax attention over a ``SlotCache``."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        self._attention: Any = layer.self_attn
        self._index = index
        self._is_gated = _IS_GATED[type(layer)]
        norm = layer.input_layernorm
        self._norm = None if isinstance(norm, nn.Identity) else LeanNorm(norm)  # pyright: ignore[reportArgumentType]
        self._feed_forward = LeanFeedForward(layer)
        has_head_norms = hasattr(self._attention, "q_norm")
        self._query_norm = LeanNorm(self._attention.q_norm) if has_head_norms else None
        self._key_norm = LeanNorm(self._attention.k_norm) if has_head_norms else None
        self._head_scale_RD = torch.empty(0)
        config = self._attention.config
        self._num_heads, self._num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self.refresh()

    def refresh(self) -> None:
        """Take over the norms' weights as they are now; the matrices are read where they are."""
        norms = (self._norm, self._feed_forward.norm, self._query_norm, self._key_norm)
        for norm in norms:
            if norm is not None:
                norm.refresh()
        if self._query_norm is not None and self._key_norm is not None:
            scales = [self._query_norm.scale] * self._num_heads + [self._key_norm.scale] * self._num_key_heads
            self._head_scale_RD = torch.stack(scales)

    def __call__(self, hidden_NH: Tensor, angles: Angles, mask: Tensor, cache: SlotCache) -> Tensor:
        """Same mathematics as the module's ``forward``; ``mask`` is ``additive_mask``'s."""
        attention = self._attention
        normed_NH = hidden_NH if self._norm is None else self._norm(hidden_NH)
        query_NAD, key_NGD, gate_NX = self._heads(normed_NH, angles)
        value_NGD = _linear(attention.v_proj, normed_NH).view(key_NGD.shape)
        key_BGLD, value_BGLD = cache.write(key_NGD, value_NGD, self._index)
        out_NX = _attend(query_NAD, key_BGLD, value_BGLD, mask, attention.scaling)
        if gate_NX is not None:
            out_NX = out_NX * gate_NX.sigmoid()
        out_proj = attention.o_proj
        summed_NH = hidden_NH if out_proj.bias is None else hidden_NH + out_proj.bias
        return self._feed_forward(torch.addmm(summed_NH, out_NX, out_proj.weight.t()))

    def _heads(self, normed_NH: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normed and rotated queries [N, A, D] and keys [N, G, D], and the gate [N, A D] of gated layers."""
        num_tokens = normed_NH.shape[0]
        query_NAD = _linear(self._attention.q_proj, normed_NH).view(num_tokens, self._num_heads, -1)
        key_NGD = _linear(self._attention.k_proj, normed_NH).view(num_tokens, self._num_key_heads, -1)
        gate_NX = None
        if self._is_gated:
            query_NAD, gate_NAD = query_NAD.chunk(2, dim=-1)
            gate_NX = gate_NAD.reshape(num_tokens, -1)
        heads_NRD = torch.cat([query_NAD, key_NGD], dim=1)
        if self._query_norm is not None:
            heads_NRD = self._query_norm.over_length(heads_NRD) * self._head_scale_RD
        heads_NRD = angles.rotate(heads_NRD)
        return heads_NRD[:, : self._num_heads], heads_NRD[:, self._num_heads :], gate_NX


def can_be_lean(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether ``LeanLayer`` computes what this layer does: a known class and activation, in float32."""
    mlp = getattr(layer, "mlp", None)
    is_silu = isinstance(getattr(mlp, "act_fn", None), nn.SiLU | SiLUActivation)
    has_bias = any(getattr(getattr(mlp, name, None), "bias", None) is not None for name in ("gate_proj", "down_proj"))
    return type(layer) in _IS_GATED and is_silu and not has_bias and dtype == torch.float32


def lean_norm(module: nn.Module, dtype: torch.dtype) -> LeanNorm | None:
    """A lean form of the norm, where it is known and the numbers are float32."""
    return LeanNorm(module) if type(module) in _IS_ZERO_CENTRED and dtype == torch.float32 else None


def _linear(module: nn.Linear, x_NH: Tensor) -> Tensor:
    return F.linear(x_NH, module.weight, module.bias)


def _attend(query_NAD: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """[N, A D]. Query heads of one key head become query positions, as in ``ragged_attention``."""
    num_rows, num_groups, _, head_dim = key_BGLD.shape
    num_tokens, num_heads, _ = query_NAD.shape
    num_new, per_group = num_tokens // num_rows, num_heads // num_groups
    split = (num_rows, num_new, num_groups, per_group, head_dim)
    folded = query_NAD.reshape(split).permute(0, 2, 3, 1, 4).reshape(num_rows, num_groups, -1, head_dim)
    out = F.scaled_dot_product_attention(folded, key_BGLD, value_BGLD, attn_mask=mask, scale=scaling)
    out = out.view(num_rows, num_groups, per_group, num_new, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(num_tokens, -1)
