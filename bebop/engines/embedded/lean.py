"""Decoder layers in few operations, for small models on a CPU, whose time goes into dispatch.

transformers' modules spend 80 to 100 operations per layer and token step; at the sizes a CPU serves, most of the time
is spent getting from one to the next. Here the same weights take about 30: matrices that read the same input are one
(a copy, see ``matrices``), queries and keys share norm and rotation, norms are four operations, residuals ride on the
matrix products. In bfloat16 the products, the attention and the cache are in that format; what runs through the layers,
norms and rotations are in float32, so that less is rounded than in the modules. The modules stay the reference: the
backbone's prefill uses them, ``EmbeddedOptions.lean=False`` uses them everywhere, and the tests compare the two.

Legend: B rows, T tokens of a row, N = B T, H hidden size, A query heads, G key heads, R = A + G, D head size,
L keys, I intermediate size, X = A D, P positions, M tokens whose output is wanted.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

from bebop.engines.embedded.cache import SlotCache
from bebop.engines.embedded.matrices import Matrix, packs_bfloat16
from bebop.models.norms import is_known_norm, norm_eps, norm_scale

_IS_GATED: dict[type, bool] = {
    Qwen3_5DecoderLayer: True,
    LlamaDecoderLayer: False,
    Qwen2DecoderLayer: False,
    Qwen3DecoderLayer: False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Angles:
    """Cosines and sines [N, 1, D] of whole heads, float32: 1 and 0 past the rotated part, first half of sines
    negative."""

    cos_N1D: Tensor
    sin_N1D: Tensor
    num_rotated: int

    def at(self, positions_N: Tensor) -> "Angles":
        """The angles of some positions, where this is a table by position."""
        return Angles(
            cos_N1D=self.cos_N1D.index_select(0, positions_N),
            sin_N1D=self.sin_N1D.index_select(0, positions_N),
            num_rotated=self.num_rotated,
        )

    def rotate(self, heads_NRD: Tensor) -> Tensor:
        """Rotary embedding of queries and keys."""
        half = self.num_rotated // 2
        parts = [heads_NRD[..., half : 2 * half], heads_NRD[..., :half], heads_NRD[..., 2 * half :]]
        return torch.addcmul(heads_NRD * self.cos_N1D, torch.cat(parts, dim=-1), self.sin_N1D)


def make_angles(cos_PD: Tensor, sin_PD: Tensor, head_dim: int) -> Angles:
    """A table by position from transformers' angles, which cover the rotated part alone."""
    cos_PD, sin_PD = cos_PD.float(), sin_PD.float()
    num_rotated = cos_PD.shape[1]
    signed_PD = torch.cat([-sin_PD[:, : num_rotated // 2], sin_PD[:, num_rotated // 2 :]], dim=1)
    padding = (0, head_dim - num_rotated)
    return Angles(
        cos_N1D=F.pad(cos_PD, padding, value=1.0)[:, None],
        sin_N1D=F.pad(signed_PD, padding)[:, None],
        num_rotated=num_rotated,
    )


class LeanNorm:
    """RMSNorm as x / hypot(|x|, sqrt(size eps)) times a weight that has sqrt(size) and the 1 of (1 + w) in it.

    It computes in float32 and gives the module's number format.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._scale = self._floor = torch.empty(0)
        self._dtype: torch.dtype = self._module.weight.dtype
        self.refresh()

    def refresh(self) -> None:
        """Take over the module's weight as it is now."""
        scale = norm_scale(self._module).detach()
        size = scale.shape[0]
        self._scale = scale * math.sqrt(size)
        self._floor = scale.new_tensor(math.sqrt(size * norm_eps(self._module)))

    @property
    def scale(self) -> Tensor:
        """The weight that multiplies x / hypot(|x|, floor)."""
        return self._scale

    def over_length(self, x: Tensor) -> Tensor:
        """x / hypot(|x|, floor), of float32."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.over_length(x.float()) * self._scale).to(self._dtype)


class LeanFeedForward:
    """Second half of a decoder layer: x + mlp(norm(x))."""

    def __init__(self, layer: nn.Module) -> None:
        mlp: Any = layer.mlp
        self._norm = LeanNorm(layer.post_attention_layernorm)  # pyright: ignore[reportArgumentType]
        self._gate_and_up = Matrix(mlp.gate_proj, mlp.up_proj)
        self._down = Matrix(mlp.down_proj)

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        for part in (self._norm, self._gate_and_up, self._down):
            part.refresh()

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        gate_NI, up_NI = self._gate_and_up(self._norm(hidden_NH)).chunk(2, dim=1)
        return self._down.onto(hidden_NH, F.silu(gate_NI).mul_(up_NI))


class LeanLayer:
    """A decoder layer of softmax attention over a ``SlotCache``."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        attention: Any = layer.self_attn
        self._index = index
        self._is_gated = _IS_GATED[type(layer)]
        self._scaling: float = attention.scaling
        config = attention.config
        self._num_heads, self._num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim: int = attention.head_dim
        num_heads = (self._num_heads + self._num_key_heads, self._num_heads * self._is_gated, self._num_key_heads)
        self._widths = [count * self._head_dim for count in num_heads]
        """Columns that ``_by_use`` gives to queries and keys, gate, values."""
        norm = layer.input_layernorm
        self._norm = None if isinstance(norm, nn.Identity) else LeanNorm(norm)  # pyright: ignore[reportArgumentType]
        self._dtype: torch.dtype = attention.q_proj.weight.dtype
        self._project = Matrix(attention.q_proj, attention.k_proj, attention.v_proj, arrange=self._by_use)
        self._out = Matrix(attention.o_proj)
        self._feed_forward = LeanFeedForward(layer)
        has_head_norms = hasattr(attention, "q_norm")
        self._query_norm = LeanNorm(attention.q_norm) if has_head_norms else None
        self._key_norm = LeanNorm(attention.k_norm) if has_head_norms else None
        self._head_scale_RD = torch.empty(0)
        self.refresh()

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        parts = (self._norm, self._project, self._out, self._feed_forward, self._query_norm, self._key_norm)
        for part in parts:
            if part is not None:
                part.refresh()
        if self._query_norm is not None and self._key_norm is not None:
            scales = [self._query_norm.scale] * self._num_heads + [self._key_norm.scale] * self._num_key_heads
            self._head_scale_RD = torch.stack(scales)

    def __call__(
        self, hidden_NH: Tensor, angles: Angles, mask: Tensor, cache: SlotCache, last_M: Tensor | None = None
    ) -> Tensor:
        """Same mathematics as the module's ``forward``, in float32 between layers; ``mask`` is ``additive_mask``'s.

        With ``last_M`` all N tokens leave their keys and values in the cache, and the output [M, H] is of those M alone
        (mask too).
        """
        hidden_NH = hidden_NH.float()
        query_NAD, gate_NX, key_NGD, value_NGD = self.heads(hidden_NH, angles)
        key_BGLD, value_BGLD = cache.write(key_NGD, value_NGD, self._index)
        if last_M is not None:
            hidden_NH, query_NAD = hidden_NH.index_select(0, last_M), query_NAD.index_select(0, last_M)
            gate_NX = None if gate_NX is None else gate_NX.index_select(0, last_M)
        out_NX = _attend(query_NAD, key_BGLD, value_BGLD, mask, self._scaling)
        if gate_NX is not None:
            out_NX = out_NX * gate_NX.sigmoid()
        return self._feed_forward(self._out.onto(hidden_NH, out_NX))

    def heads(self, hidden_NH: Tensor, angles: Angles) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Normed and rotated queries [N, A, D], the gate [N, A D] of gated layers, normed and rotated keys and values
        [N, G, D]."""
        projected_NO = self._project(hidden_NH.to(self._dtype) if self._norm is None else self._norm(hidden_NH))
        heads_NX, gate_NX, value_NX = projected_NO.split(self._widths, dim=1)
        heads_NRD, value_NGD = (x.view(len(x), -1, self._head_dim) for x in (heads_NX, value_NX))
        heads_NRD = heads_NRD.float()
        if self._query_norm is not None:
            heads_NRD = self._query_norm.over_length(heads_NRD) * self._head_scale_RD
        heads_NRD = angles.rotate(heads_NRD).to(value_NGD.dtype)
        gate_or_none = gate_NX if self._is_gated else None
        return heads_NRD[:, : self._num_heads], gate_or_none, heads_NRD[:, self._num_heads :], value_NGD

    def _by_use(self, tensors: list[Tensor]) -> Tensor:
        """Rows of the three projections as queries, keys, gate, values; a gated layer's queries and gate come head by
        head."""
        query, key, value = tensors
        if not self._is_gated:
            return torch.cat([query, key, value])
        query, gate = query.unflatten(0, (self._num_heads, 2, self._head_dim)).unbind(1)
        return torch.cat([query.flatten(0, 1), key, gate.flatten(0, 1), value])


def can_be_lean(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether ``LeanLayer`` computes what this layer does: a known class, activation and number format."""
    mlp: Any = getattr(layer, "mlp", None)
    is_silu = isinstance(getattr(mlp, "act_fn", None), nn.SiLU | SiLUActivation)
    return type(layer) in _IS_GATED and is_silu and _is_lean_format(dtype, mlp.down_proj.weight.device)


def lean_norm(module: nn.Module, dtype: torch.dtype) -> LeanNorm | None:
    """A lean form of the norm, where it and the number format are known."""
    weight = getattr(module, "weight", None)
    is_known = is_known_norm(module) and weight is not None and _is_lean_format(dtype, weight.device)
    return LeanNorm(module) if is_known else None


def _is_lean_format(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.float32 or (dtype == torch.bfloat16 and packs_bfloat16(device))


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
