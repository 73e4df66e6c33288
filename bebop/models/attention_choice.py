"""Which attention implementation a model's layers use, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig


@contextmanager
def attending_by(implementation: str, *configs: PreTrainedConfig) -> Iterator[None]:
    """Models with these configs attend by an implementation known to transformers, and as before after the block."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = implementation
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
