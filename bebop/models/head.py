"""MTPHead: one draft step over the architecture's own transformers decoder layer.

Shapes: B rows, T positions, H hidden size, P cached positions, J = P + T keys.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, PreTrainedConfig

from bebop.models.contracts import HeadContract


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadState:
    """What one draft step yields: `output_BTH` enters the lm_head, `recycle_BTH` is the next depth's hidden."""

    output_BTH: Tensor
    recycle_BTH: Tensor


class MTPHead(nn.Module):
    """An MTP module: norm and fuse (hidden, token embedding), one decoder layer, output norm.

    The parameters carry the canonical names `fuse`, `embedding_norm`, `hidden_norm`, `layer`, `output_norm`; their
    names in a checkpoint are the contract's business (`bebop.models.naming`). `layer` is the architecture's own class
    at index 0, so a cache sees `update(keys, values, 0)`, and attention runs by `config._attn_implementation`, which
    trainers and engines may set to an implementation they registered with transformers' AttentionInterface.

    Built without initialisation in mind: load tensors into it, or call `bebop.models.fresh.initialise_head`.
    """

    def __init__(self, contract: HeadContract, config: PreTrainedConfig) -> None:
        """`config` is the head's own (see `head_config`), not the backbone's."""
        super().__init__()
        module = importlib.import_module(contract.classes.module)
        norm = getattr(module, contract.classes.norm)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.contract = contract
        self.config = config
        self.fuse = nn.Linear(2 * size, size, bias=False)
        self.embedding_norm = norm(size, eps=eps) if contract.names.embedding_norm else nn.Identity()
        self.hidden_norm = norm(size, eps=eps) if contract.names.hidden_norm else nn.Identity()
        self.layer = getattr(module, contract.classes.layer)(config, layer_idx=0)
        if not contract.layer_input_norm:
            self.layer.input_layernorm = nn.Identity()
        self.output_norm = norm(size, eps=eps) if contract.names.output_norm else nn.Identity()
        # Its frequencies are computed, not loaded: they must be real even where the rest is built on `meta`.
        with torch.device("cpu"):
            self.rotary = getattr(module, contract.classes.rotary)(config)

    def forward(
        self,
        hidden_BTH: Tensor,
        token_embeds_BTH: Tensor,
        position_ids_BT: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> HeadState:
        """One draft depth for every position.

        hidden_BTH: the backbone's hidden at each position for depth 1 (`Policy.run_backbone(...).draft_input_BTH`),
        the previous depth's `recycle_BTH` after it. token_embeds_BTH: embedding of the token after the last one
        `hidden` has seen. position_ids_BT: position of the hidden, not of the token. attention_mask: bool (True =
        attend) or additive, [B or 1, 1, T, J]; None = causal over cached and new keys. cache: its `update` is called
        once; given no mask and T > 1, `get_seq_length` too.
        """
        fused_BTH = self._fuse(hidden_BTH, token_embeds_BTH, position_ids_BT)
        if attention_mask is None:
            attention_mask = self._causal_mask(fused_BTH, cache)
        layer_BTH = self.layer(
            fused_BTH,
            position_embeddings=self.rotary(fused_BTH, position_ids_BT),
            attention_mask=attention_mask,
            position_ids=position_ids_BT,
            past_key_values=cache,
        )
        output_BTH = self.output_norm(layer_BTH)
        recycle_BTH = output_BTH if self.contract.recycle == "post" else layer_BTH
        return HeadState(output_BTH=output_BTH, recycle_BTH=recycle_BTH)

    def _fuse(self, hidden_BTH: Tensor, token_embeds_BTH: Tensor, position_ids_BT: Tensor) -> Tensor:
        if self.contract.zero_embedding_at_position_0:
            token_embeds_BTH = token_embeds_BTH.masked_fill((position_ids_BT == 0)[..., None], 0.0)
        pair = (self.embedding_norm(token_embeds_BTH), self.hidden_norm(hidden_BTH))
        if self.contract.concat_order == "hidden_first":
            pair = pair[::-1]
        return self.fuse(torch.cat(pair, dim=-1))

    def _causal_mask(self, fused_BTH: Tensor, cache: Cache | None) -> Tensor | None:
        """A mask where attention is not causal by itself: run eagerly, or with several new rows on a cache."""
        num_new = fused_BTH.shape[1]
        num_cached = cache.get_seq_length() if cache is not None and num_new > 1 else 0
        if num_new == 1 or (num_cached == 0 and self.config._attn_implementation != "eager"):
            return None
        keep_TJ = torch.ones(num_new, num_cached + num_new, dtype=torch.bool, device=fused_BTH.device)
        keep_11TJ = keep_TJ.tril(diagonal=num_cached)[None, None]
        zeros_11TJ = torch.zeros_like(keep_11TJ, dtype=fused_BTH.dtype)
        return zeros_11TJ.masked_fill(~keep_11TJ, torch.finfo(fused_BTH.dtype).min)


def head_config(contract: HeadContract, backbone_config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the head's single layer, made from the backbone's text config (which is left untouched)."""
    if contract.subdirectory is not None:
        return _llama_draft_config(backbone_config)
    config = copy.deepcopy(backbone_config)
    config.num_hidden_layers = 1
    for key, value in contract.layer_config.items():
        setattr(config, key, copy.copy(value))
    return config


def _llama_draft_config(backbone_config: PreTrainedConfig) -> LlamaConfig:
    """A one-layer Llama of the target's sizes, rotary settings and vocabulary."""
    shared: dict[str, Any] = {
        key: getattr(backbone_config, key)
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "hidden_act",
            "max_position_embeddings",
            "rms_norm_eps",
            "initializer_range",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "tie_word_embeddings",
        )
    }
    num_heads = backbone_config.num_attention_heads
    head_dim = getattr(backbone_config, "head_dim", None) or backbone_config.hidden_size // num_heads
    config = LlamaConfig(
        **shared,
        num_hidden_layers=1,
        head_dim=head_dim,
        rope_parameters=copy.deepcopy(backbone_config.rope_parameters),
        attention_bias=False,
        mlp_bias=False,
    )
    config._attn_implementation = backbone_config._attn_implementation
    return config
