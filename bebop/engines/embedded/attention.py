"""Attention over rows of different lengths, for the attention layers of transformers.

Legend: B rows, T new positions of a row, L cached positions, H heads, D head size, G query heads per key head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig

IMPLEMENTATION = "bebop_ragged"
"""The name under which ``ragged_attention`` is known to transformers."""


def ragged_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHLD: Tensor,
    value_BHLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: grouped queries without copying keys, masks used as they come.

    ``attention_mask`` is additive, [B, 1, G T, L], as ``additive_mask`` makes it; None is causal over equal lengths
    (prefill). The keyword arguments left over are transformers' (dropout, which is 0 here, and kernel hints).
    """
    num_rows, num_heads, num_new, head_dim = query_BHTD.shape
    if attention_mask is None:
        grouped = num_heads != key_BHLD.shape[1]
        out_BHTD = F.scaled_dot_product_attention(
            query_BHTD, key_BHLD, value_BHLD, is_causal=num_new > 1, scale=scaling, enable_gqa=grouped
        )
        return out_BHTD.transpose(1, 2), None
    # Query heads of one key head become extra query positions: the keys are read once and never repeated.
    folded = query_BHTD.reshape(num_rows, key_BHLD.shape[1], -1, head_dim)
    out = F.scaled_dot_product_attention(folded, key_BHLD, value_BHLD, attn_mask=attention_mask, scale=scaling)
    return out.reshape(num_rows, num_heads, num_new, -1).transpose(1, 2), None


def additive_mask(positions_BT: Tensor, num_keys: int, num_groups: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, G T, L]: 0 where the key's position is not after the query's, minus infinity elsewhere."""
    keys_L = torch.arange(num_keys, device=positions_BT.device)
    later_BTL = keys_L > positions_BT[:, :, None]
    mask_BTL = torch.zeros(later_BTL.shape, dtype=dtype, device=positions_BT.device)
    mask_BTL.masked_fill_(later_BTL, float("-inf"))
    return mask_BTL[:, None].repeat(1, 1, num_groups, 1) if num_groups > 1 else mask_BTL[:, None]


@contextmanager
def ragged(*configs: PreTrainedConfig) -> Iterator[None]:
    """Models with these configs use ``ragged_attention`` inside the block and what they used before outside it."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


AttentionInterface.register(IMPLEMENTATION, ragged_attention)
