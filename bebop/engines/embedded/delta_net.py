"""Gated DeltaNet layers whose states can be rolled back to any token of a window.

The recurrent state obeys S_i = exp(g_i) S_{i-1} + k_i d_i' with the correction d_i = b_i (v_i - exp(g_i) S_{i-1}' k_i).
A window is computed from the state before it in closed form, and leaves that state untouched: the corrections do
not depend on later tokens, so once it is known how many tokens stand, one rank-T update gives the state after exactly
those. No state per token is stored and nothing is run twice. The convolution's state is a slice of its inputs.

The slow reference is transformers' own layer; the tests compare with it and with fresh prefills.

Legend: B rows, T tokens of a window, N value heads, k key size, v value size, C convolution channels, W its width,
X = W - 1 + T, H hidden size, S slots.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet, torch_chunk_gated_delta_rule

from bebop.engines.embedded.cache import PrefillCache, allocate


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """Queries and keys normalised, in float32; ``decay`` is the log of the state's factor per token."""

    query_BNTk: Tensor
    key_BNTk: Tensor
    value_BNTv: Tensor
    decay_BNT: Tensor
    beta_BNT: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """What is needed to move a row's states to after any number of the window's tokens."""

    inputs_BXC: Tensor
    key_BNTk: Tensor
    correction_BNTv: Tensor
    decay_BNT: Tensor
    """Log decay summed from the window's first token."""


class DeltaNetCache:
    """Recurrent and convolution states of every slot, and the window that is not yet decided."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._recurrent_SNkv: dict[int, Tensor] = {}
        self._convolution_SWC: dict[int, Tensor] = {}
        self._windows: dict[int, _Window] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of the states."""
        stores = (*self._recurrent_SNkv.values(), *self._convolution_SWC.values())
        return sum(t.numel() * t.element_size() for t in stores)

    def mix(self, module: Qwen3_5GatedDeltaNet, layer: int, hidden_BTH: Tensor) -> Tensor:
        """The layer's output for a window after the states of slots 0..B-1, which stay as they are until ``commit``."""
        num_rows = hidden_BTH.shape[0]
        mixed_BTC = module.in_proj_qkv(hidden_BTH)
        self._ensure(module, layer, mixed_BTC)
        inputs_BXC = torch.cat([self._convolution_SWC[layer][:num_rows], mixed_BTC], dim=1)
        inputs = _project(module, hidden_BTH, _convolve(module, inputs_BXC))
        summed_BNT = inputs.decay_BNT.cumsum(-1)
        out_BNTv, correction_BNTv = _delta_window(inputs, summed_BNT, self._recurrent_SNkv[layer][:num_rows])
        self._windows[layer] = _Window(
            inputs_BXC=inputs_BXC, key_BNTk=inputs.key_BNTk, correction_BNTv=correction_BNTv, decay_BNT=summed_BNT
        )
        return _finish(module, hidden_BTH, out_BNTv.transpose(1, 2))

    @property
    def is_open(self) -> bool:
        """Whether a window waits to be decided."""
        return bool(self._windows)

    def commit(self, num_kept_B: Tensor) -> None:
        """Advance the states by the first ``num_kept_B`` (1..T) tokens of the window and forget the rest."""
        last_B = num_kept_B - 1
        for layer, window in self._windows.items():
            num_rows, _, num_new = window.decay_BNT.shape
            end_BN1 = window.decay_BNT.gather(2, last_B[:, None, None].expand(-1, window.decay_BNT.shape[1], 1))
            dropped_B1T = torch.arange(num_new, device=last_B.device) > last_B[:, None, None]
            # A dropped token's weight must be 0 exactly: exp(end - later) could overflow before it is masked.
            weight_BNT = (end_BN1 - window.decay_BNT).masked_fill(dropped_B1T, float("-inf")).exp()
            state_BNkv = self._recurrent_SNkv[layer][:num_rows]
            state_BNkv.mul_(end_BN1.exp()[..., None])
            state_BNkv.add_((window.key_BNTk * weight_BNT[..., None]).transpose(2, 3) @ window.correction_BNTv)
            convolution_BWC = self._convolution_SWC[layer][:num_rows]
            taps_BW = num_kept_B[:, None] + torch.arange(convolution_BWC.shape[1], device=last_B.device)
            index = taps_BW[..., None].expand(-1, -1, convolution_BWC.shape[2])
            convolution_BWC.copy_(window.inputs_BXC.gather(1, index))
        self._windows.clear()

    def fill(self, slots: list[int], prefill: PrefillCache, rows: list[int]) -> None:
        """Copy the states after prefilled rows into slots."""
        for layer, (recurrent_RNkv, convolution_RWC) in prefill.states.items():
            self._allocate(layer, recurrent_RNkv, convolution_RWC)
            self._recurrent_SNkv[layer][slots] = recurrent_RNkv[rows]
            self._convolution_SWC[layer][slots] = convolution_RWC[rows]

    def copy_of(self, slot: int) -> dict[int, tuple[Tensor, Tensor]]:
        """The states of a slot by layer, as ``PrefillCache`` keeps those of one row."""
        return {
            layer: (self._recurrent_SNkv[layer][[slot]], self._convolution_SWC[layer][[slot]]) for layer in self.layers
        }

    def rows(self) -> dict[int, tuple[Tensor, Tensor]]:
        """The states of every slot by layer, sharing this cache's memory."""
        return {layer: (self._recurrent_SNkv[layer], self._convolution_SWC[layer]) for layer in self.layers}

    def move(self, source: int, target: int) -> None:
        """Overwrite slot ``target`` with slot ``source``."""
        for stores in (self._recurrent_SNkv, self._convolution_SWC):
            for store in stores.values():
                store[target] = store[source]

    def clear(self, slot: int) -> None:
        """The states before any token."""
        for stores in (self._recurrent_SNkv, self._convolution_SWC):
            for store in stores.values():
                store[slot] = 0

    def states(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Recurrent [N, k, v] and convolution [W - 1, C] state of a slot."""
        return self._recurrent_SNkv[layer][slot], self._convolution_SWC[layer][slot]

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers that have states."""
        return tuple(self._recurrent_SNkv)

    def _ensure(self, module: Qwen3_5GatedDeltaNet, layer: int, mixed_BTC: Tensor) -> None:
        if layer not in self._recurrent_SNkv:
            state = mixed_BTC.new_empty((1, module.num_v_heads, module.head_k_dim, module.head_v_dim)).float()
            self._allocate(layer, state, mixed_BTC.new_empty((1, module.conv_kernel_size - 1, mixed_BTC.shape[2])))

    def _allocate(self, layer: int, recurrent_RNkv: Tensor, convolution_RWC: Tensor) -> None:
        if layer not in self._recurrent_SNkv:
            self._recurrent_SNkv[layer] = allocate((self.num_slots, *recurrent_RNkv.shape[1:]), recurrent_RNkv)
            self._convolution_SWC[layer] = allocate((self.num_slots, *convolution_RWC.shape[1:]), convolution_RWC)


def prefill_mix(
    module: Qwen3_5GatedDeltaNet, layer: int, hidden_RTH: Tensor, lengths_R: Tensor, cache: PrefillCache
) -> Tensor:
    """The layer's output over right-padded prompts; the states after each row's own length go to ``cache``."""
    num_taps = module.conv_kernel_size - 1
    inputs_RXC = F.pad(module.in_proj_qkv(hidden_RTH), (0, 0, num_taps, 0))
    inputs = _project(module, hidden_RTH, _convolve(module, inputs_RXC))
    padding_R1T = torch.arange(hidden_RTH.shape[1], device=lengths_R.device) >= lengths_R[:, None, None]
    # With no decay and no correction, a padding token leaves the state as it is.
    out_RTNv, recurrent_RNkv = torch_chunk_gated_delta_rule(
        inputs.query_BNTk.transpose(1, 2),
        inputs.key_BNTk.transpose(1, 2),
        inputs.value_BNTv.transpose(1, 2),
        g=inputs.decay_BNT.masked_fill(padding_R1T, 0.0).transpose(1, 2),
        beta=inputs.beta_BNT.masked_fill(padding_R1T, 0.0).transpose(1, 2),
        output_final_state=True,
    )
    assert recurrent_RNkv is not None
    taps_RW = lengths_R[:, None] + torch.arange(num_taps, device=lengths_R.device)
    convolution_RWC = inputs_RXC.gather(1, taps_RW[..., None].expand(-1, -1, inputs_RXC.shape[2]))
    cache.states[layer] = (recurrent_RNkv, convolution_RWC)
    return _finish(module, hidden_RTH, out_RTNv)


def _delta_window(inputs: _Inputs, summed_BNT: Tensor, state_BNkv: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, N, T, v] and corrections [B, N, T, v] of a window that starts from ``state_BNkv``."""
    num_new = summed_BNT.shape[2]
    scale = inputs.query_BNTk.shape[-1] ** -0.5
    query_BNTk = inputs.query_BNTk * scale
    reads = torch.cat([query_BNTk, inputs.key_BNTk], dim=2) @ state_BNkv
    reads = reads * summed_BNT.exp().repeat(1, 1, 2)[..., None]
    target_BNTv = (inputs.value_BNTv - reads[:, :, num_new:]) * inputs.beta_BNT[..., None]
    products = torch.cat([query_BNTk, inputs.key_BNTk], dim=2) @ inputs.key_BNTk.transpose(2, 3)
    if num_new == 1:
        return reads[:, :, :1] + products[:, :, :1] * target_BNTv, target_BNTv
    later_TT = torch.ones(num_new, num_new, dtype=torch.bool, device=summed_BNT.device).triu(1)
    decay_BNTT = (summed_BNT[..., :, None] - summed_BNT[..., None, :]).masked_fill(later_TT, float("-inf")).exp()
    system_BNTT = products[:, :, num_new:] * decay_BNTT * inputs.beta_BNT[..., None]
    correction_BNTv = torch.linalg.solve_triangular(system_BNTT, target_BNTv, upper=False, unitriangular=True)
    out_BNTv = reads[:, :, :num_new] + (products[:, :, :num_new] * decay_BNTT) @ correction_BNTv
    return out_BNTv, correction_BNTv


def _convolve(module: Qwen3_5GatedDeltaNet, inputs_BXC: Tensor) -> Tensor:
    """Depthwise causal convolution and activation, [B, T, C]."""
    taps_BTCW = inputs_BXC.unfold(1, module.conv_kernel_size, 1)
    return F.silu((taps_BTCW * module.conv1d.weight[:, 0]).sum(-1))


def _project(module: Qwen3_5GatedDeltaNet, hidden_BTH: Tensor, mixed_BTC: Tensor) -> _Inputs:
    num_rows, num_new, _ = hidden_BTH.shape
    sizes = [module.key_dim, module.key_dim, module.value_dim]
    query, key, value = mixed_BTC.float().split(sizes, dim=-1)
    repeats = module.num_v_heads // module.num_k_heads
    query, key = (
        _unit(x.reshape(num_rows, num_new, -1, module.head_k_dim)).repeat_interleave(repeats, dim=2).transpose(1, 2)
        for x in (query, key)
    )
    rate = F.softplus(module.in_proj_a(hidden_BTH).float() + module.dt_bias)
    return _Inputs(
        query_BNTk=query,
        key_BNTk=key,
        value_BNTv=value.reshape(num_rows, num_new, -1, module.head_v_dim).transpose(1, 2),
        decay_BNT=(-module.A_log.float().exp() * rate).transpose(1, 2),
        beta_BNT=module.in_proj_b(hidden_BTH).sigmoid().float().transpose(1, 2),
    )


def _unit(x: Tensor) -> Tensor:
    """x over its length, with the epsilon of the reference kernels."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _finish(module: Qwen3_5GatedDeltaNet, hidden_BTH: Tensor, out_BTNv: Tensor) -> Tensor:
    """Gated norm and output projection."""
    gate = module.in_proj_z(hidden_BTH).reshape(-1, module.head_v_dim)
    normed = module.norm(out_BTNv.to(hidden_BTH.dtype).reshape(-1, module.head_v_dim), gate)
    return module.out_proj(normed.reshape(*hidden_BTH.shape[:2], -1))
