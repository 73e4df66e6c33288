"""The policy's backbone, run over rows of different lengths with the engine's own caches.

The decoder layers are transformers' own modules, called one by one: masks and rotary angles are made once per forward,
and logits are left to the caller, who needs few of them.

Legend: B rows, T tokens of a row, R rows of a prefill, H hidden size, P positions, D rotary size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from bebop.engines.embedded.attention import additive_mask
from bebop.engines.embedded.cache import PrefillCache, SlotCache
from bebop.engines.embedded.delta_net import DeltaNetCache, prefill_mix
from bebop.errors import UserError
from bebop.models.policy import Policy

_KEY_MULTIPLE = 16
"""Attention reads a multiple of this many keys, so that masks are aligned and shapes repeat from round to round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """``output_BTH`` enters the lm_head; ``draft_BTH`` enters the head (the same unless its contract differs)."""

    output_BTH: Tensor
    draft_BTH: Tensor


class Rotary:
    """Cosines and sines by position, computed once per position instead of once per forward."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._module = module
        self._like = torch.empty(0, dtype=dtype, device=device)
        rope_type = getattr(module, "rope_type", "default")
        if rope_type in ("dynamic", "longrope"):
            raise UserError(
                f"rotary type {rope_type!r} changes with the length, which the embedded engine has no cache for"
            )
        self._cos_PD = self._sin_PD = torch.empty(0, 0, device=device)

    def reserve(self, num_positions: int) -> None:
        """Angles for positions 0..num_positions-1."""
        if num_positions > self._cos_PD.shape[0]:
            positions_1P = torch.arange(num_positions, device=self._like.device)[None]
            cos, sin = self._module(self._like, positions_1P)
            self._cos_PD, self._sin_PD = cos[0].contiguous(), sin[0].contiguous()

    def __call__(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] cosines and sines."""
        return self._cos_PD[positions_BT], self._sin_PD[positions_BT]


class Backbone:
    """Prefills, windows of new tokens, and the decision how many of a window's tokens stand."""

    def __init__(self, policy: Policy, num_slots: int) -> None:
        self.policy = policy
        self.attention = SlotCache(num_slots)
        self.delta = DeltaNetCache(num_slots)
        self._model = policy.backbone.model
        self._layers = list(self._model.layers)
        self._takes_pre_norm = policy.contract is not None and policy.contract.input_norm == "pre"
        self._rotary = Rotary(self._model.rotary_emb, policy.dtype, policy.device)
        self._num_groups = policy.config.num_attention_heads // policy.config.num_key_value_heads
        _check_layers(self._layers, policy)

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
        angles = self._rotary(positions_1T)
        for index, layer in enumerate(self._layers):
            mixer = getattr(layer, "linear_attn", None)
            if mixer is None:
                hidden_RTH = layer(
                    hidden_RTH,
                    position_embeddings=angles,
                    attention_mask=None,
                    position_ids=positions_1T,
                    past_key_values=cache,
                )
            else:
                mixed_RTH = prefill_mix(mixer, index, layer.input_layernorm(hidden_RTH), lengths_R, cache)
                hidden_RTH = _feed_forward(layer, hidden_RTH + mixed_RTH)
        return self._hidden(hidden_RTH), cache

    def window(self, tokens_BT: Tensor, positions_BT: Tensor, longest: int) -> Hidden:
        """Run T new tokens of slots 0..B-1 at their own positions; ``longest`` is one more than the last of them."""
        num_keys = aligned(longest, self.attention.capacity)
        self.attention.begin(positions_BT, num_keys)
        mask = additive_mask(positions_BT, num_keys, self._num_groups, self.policy.dtype)
        angles = self._rotary(positions_BT)
        hidden_BTH = self.policy.embed(tokens_BT)
        for index, layer in enumerate(self._layers):
            mixer = getattr(layer, "linear_attn", None)
            if mixer is None:
                hidden_BTH = layer(
                    hidden_BTH,
                    position_embeddings=angles,
                    attention_mask=mask,
                    position_ids=positions_BT,
                    past_key_values=self.attention,
                )
            else:
                mixed_BTH = self.delta.mix(mixer, index, layer.input_layernorm(hidden_BTH))
                hidden_BTH = _feed_forward(layer, hidden_BTH + mixed_BTH)
        return self._hidden(hidden_BTH)

    def commit(self, num_kept_B: Tensor) -> None:
        """The first ``num_kept_B`` (1..T) tokens of the last window stand; recurrent states move to after them."""
        self.delta.commit(num_kept_B)

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
        output_BTH = self._model.norm(hidden_BTH)
        return Hidden(output_BTH=output_BTH, draft_BTH=hidden_BTH if self._takes_pre_norm else output_BTH)


def aligned(num_keys: int, capacity: int) -> int:
    """Keys to read for rows of at most ``num_keys``: a multiple of 16, within the slots' capacity."""
    return min(-(-num_keys // _KEY_MULTIPLE) * _KEY_MULTIPLE, capacity)


def _feed_forward(layer: nn.Module, hidden_BTH: Tensor) -> Tensor:
    """The second half of a decoder layer."""
    return hidden_BTH + layer.mlp(layer.post_attention_layernorm(hidden_BTH))  # pyright: ignore[reportCallIssue]


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
