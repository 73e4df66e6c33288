"""The policy's backbone, run over rows of different lengths with the engine's own caches.

The decoder layers are transformers' own modules, called one by one: masks and rotary angles are made once per forward,
and logits are left to the caller, who needs few of them.

Legend: B rows, T tokens of a row, R rows of a prefill, H hidden size, N = B T.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from bebop.engines.embedded.attention import additive_mask
from bebop.engines.embedded.cache import PrefillCache, SlotCache
from bebop.engines.embedded.delta_net import DeltaNetCache, prefill_mix
from bebop.engines.embedded.lean import Angles, LeanLayer, LeanNorm, can_be_lean, lean_norm
from bebop.engines.embedded.matrices import Matrix
from bebop.engines.embedded.rotary import Rotary
from bebop.errors import UserError
from bebop.models.policy import Policy

KEY_MULTIPLE = 16
"""Attention reads a multiple of this many keys, so that masks are aligned and shapes repeat from round to round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """``output_BTH`` enters the lm_head; ``draft_BTH`` enters the head (the same unless its contract differs)."""

    output_BTH: Tensor
    draft_BTH: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """What every layer of one forward shares."""

    positions_BT: Tensor
    angles: tuple[Tensor, Tensor]
    lean_angles: Angles
    mask: Tensor


class Backbone:
    """Prefills, windows of new tokens, and the decision how many of a window's tokens stand."""

    def __init__(self, policy: Policy, num_slots: int, *, lean: bool = True) -> None:
        self.policy = policy
        self._model: Any = policy.backbone.get_decoder()
        self._layers = list(self._model.layers)
        self.attention = SlotCache(num_slots, [index for index, one in enumerate(self._layers) if _is_attention(one)])
        self.delta = DeltaNetCache(num_slots)
        _check_layers(self._layers, policy)
        self._dtype, self._device = policy.dtype, policy.device
        self._takes_pre_norm = policy.contract is not None and policy.contract.input_norm == "pre"
        self._num_groups = policy.config.num_attention_heads // policy.config.num_key_value_heads
        head_dim = head_size(policy.config)
        self._rotary = Rotary(self._model.rotary_emb, head_dim, policy.dtype, policy.device)
        self._lean = [
            LeanLayer(layer, index) if lean and _is_attention(layer) and can_be_lean(layer, policy.dtype) else None
            for index, layer in enumerate(self._layers)
        ]
        self._norm = (lean_norm(self._model.norm, policy.dtype) if lean else None) or self._model.norm
        lm_head: Any = policy.backbone.get_output_embeddings()
        self._lm_head = Matrix(lm_head) if any(layer is not None for layer in self._lean) else None

    def refresh(self) -> None:
        """The policy's weights may have changed: take over what was copied of them."""
        for part in (*self._lean, self._norm, self._lm_head):
            if isinstance(part, LeanLayer | LeanNorm | Matrix):
                part.refresh()

    @property
    def num_bytes(self) -> int:
        """Memory of the caches."""
        return self.attention.num_bytes + self.delta.num_bytes

    def reserve(self, num_positions: int) -> None:
        """Room for ``num_positions`` per row."""
        self.attention.reserve(num_positions)
        self._rotary.reserve(self.attention.capacity)

    def prefill(self, tokens_RT: Tensor, lengths_R: Tensor) -> tuple[Hidden, PrefillCache]:
        """Run right-padded prompts from position 0; what lies past a row's length is meaningless but finite."""
        cache = PrefillCache()
        self._rotary.reserve(tokens_RT.shape[1])
        positions_1T = torch.arange(tokens_RT.shape[1], device=tokens_RT.device)[None]
        hidden_RTH = self.policy.embed(tokens_RT)
        angles = self._rotary.at(positions_1T)
        for index, layer in enumerate(self._layers):
            if _is_attention(layer):
                hidden_RTH = layer(
                    hidden_RTH,
                    position_embeddings=angles,
                    attention_mask=None,
                    position_ids=positions_1T,
                    past_key_values=cache,
                )
            else:
                normed_RTH = layer.input_layernorm(hidden_RTH)
                mixed_RTH = prefill_mix(layer.linear_attn, index, normed_RTH, lengths_R, cache)
                hidden_RTH = _feed_forward(layer, hidden_RTH + mixed_RTH)
        return self._hidden(hidden_RTH), cache

    def window(self, tokens_BT: Tensor, positions_BT: Tensor, longest: int) -> Hidden:
        """Run T new tokens of slots 0..B-1 at their own positions; ``longest`` is one more than the last of them."""
        num_keys = aligned(longest, self.attention.capacity)
        self.attention.begin(positions_BT, num_keys)
        window = _Window(
            positions_BT=positions_BT,
            angles=self._rotary.at(positions_BT),
            lean_angles=self._rotary.lean_at(positions_BT),
            mask=additive_mask(positions_BT, num_keys, self._num_groups, self._dtype),
        )
        hidden_BTH = self.policy.embed(tokens_BT)
        for index in range(len(self._layers)):
            hidden_BTH = self._layer(index, hidden_BTH, window)
        return self._hidden(hidden_BTH)

    def logits(self, hidden_XH: Tensor) -> Tensor:
        """The lm_head's logits [..., V] of post-norm hidden states, or of a head's output."""
        if self._lm_head is None:
            return self.policy.logits(hidden_XH)
        return self._lm_head(hidden_XH.reshape(-1, hidden_XH.shape[-1])).view(*hidden_XH.shape[:-1], -1)

    def _layer(self, index: int, hidden_BTH: Tensor, window: _Window) -> Tensor:
        layer, lean = self._layers[index], self._lean[index]
        if lean is not None:
            out_NH = lean(hidden_BTH.flatten(0, 1), window.lean_angles, window.mask, self.attention)
            return out_NH.view(hidden_BTH.shape)
        hidden_BTH = hidden_BTH.to(self._dtype)
        if _is_attention(layer):
            return layer(
                hidden_BTH,
                position_embeddings=window.angles,
                attention_mask=window.mask,
                position_ids=window.positions_BT,
                past_key_values=self.attention,
            )
        mixed_BTH = self.delta.mix(layer.linear_attn, index, layer.input_layernorm(hidden_BTH))
        return _feed_forward(layer, hidden_BTH + mixed_BTH)

    def commit(self, num_kept: Sequence[int]) -> None:
        """The first ``num_kept[b]`` tokens of row b's last window stand; recurrent states move to after them.

        Rows that keep none are done with: what their slots hold is meaningless.
        """
        if self.delta.is_open:
            self.delta.commit(torch.tensor(num_kept, device=self._device).clamp(min=1))

    def apart(self, num_slots: int) -> "Backbone":
        """The same layers over caches of their own, no larger than what is reserved."""
        other = copy.copy(self)
        other.attention = SlotCache(num_slots, self.attention.layers, KEY_MULTIPLE)
        other.delta = DeltaNetCache(num_slots)
        return other

    def copy_of(self, slot: int, num_positions: int) -> PrefillCache:
        """The first positions of a slot as one prefilled row; recurrent states are those after the last commit."""
        cache = self.attention.copy_of(slot, num_positions)
        cache.states = self.delta.copy_of(slot)
        return cache

    def rows(self, num_positions: int) -> PrefillCache:
        """Every slot as a prefilled row, sharing the caches' memory."""
        cache = self.attention.rows(num_positions)
        cache.states = self.delta.rows()
        return cache

    def fill(self, slots: list[int], prefill: PrefillCache, rows: list[int]) -> None:
        """Copy prefilled rows into slots."""
        self.attention.fill(slots, prefill, rows)
        self.delta.fill(slots, prefill, rows)

    def move(self, source: int, target: int) -> None:
        """Overwrite slot ``target`` with slot ``source``."""
        self.attention.move(source, target)
        self.delta.move(source, target)

    def clear(self, slot: int) -> None:
        """Forget a slot's content (needed for prompts of one token, and after NaN)."""
        self.attention.clear(slot)
        self.delta.clear(slot)

    def _hidden(self, hidden_BTH: Tensor) -> Hidden:
        output_BTH = self._norm(hidden_BTH).to(self._dtype)
        draft_BTH = hidden_BTH.to(self._dtype) if self._takes_pre_norm else output_BTH
        return Hidden(output_BTH=output_BTH, draft_BTH=draft_BTH)


def aligned(num_keys: int, capacity: int) -> int:
    """Keys to read for rows of at most ``num_keys``: a multiple of 16, within the slots' capacity."""
    return min(-(-num_keys // KEY_MULTIPLE) * KEY_MULTIPLE, capacity)


def head_size(config: PreTrainedConfig) -> int:
    """D of a text config."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _is_attention(layer: nn.Module) -> bool:
    return getattr(layer, "linear_attn", None) is None


def _feed_forward(layer: Any, hidden_BTH: Tensor) -> Tensor:
    """The second half of a decoder layer."""
    return hidden_BTH + layer.mlp(layer.post_attention_layernorm(hidden_BTH))


def _check_layers(layers: list[nn.Module], policy: Policy) -> None:
    """UserError for layer kinds whose cache the engine does not have."""
    kinds = getattr(policy.config, "layer_types", None) or ["full_attention"] * len(layers)
    for kind, layer in zip(kinds, layers, strict=True):
        mixer = getattr(layer, "linear_attn", None)
        supported = isinstance(mixer, Qwen3_5GatedDeltaNet) if kind == "linear_attention" else kind == "full_attention"
        if not supported:
            raise UserError(
                f"the embedded engine runs full attention and Qwen3.5's Gated DeltaNet layers, not {kind!r} of "
                f"{type(layer).__name__}; use another engine for this policy"
            )
