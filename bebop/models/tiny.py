"""The built-in policies: `tiny`, shipped as weights, and `tiny-hybrid`, made on the fly with Gated DeltaNet layers.

Both are of type ``qwen3_5_text``, so every engine that serves Qwen3.5 serves them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from bebop.models.names import cache_dir
from bebop.models.record import new_policy
from bebop.models.saving import save_policy

VOCAB_SIZE = 1024
CONTEXT = 1024


def tiny_path() -> Path:
    """Directory of the shipped `tiny` checkpoint."""
    return Path(str(resources.files("bebop.models") / "assets" / "tiny"))


def tiny_hybrid_path() -> Path:
    """Directory of `tiny-hybrid`: random weights from a fixed seed, tiny's tokenizer; cached on first use."""
    path = cache_dir() / "tiny-hybrid"
    if not (path / "config.json").is_file():
        torch.manual_seed(0)
        backbone = Qwen3_5ForCausalLM(tiny_hybrid_config())
        nn.Module.to(backbone, torch.bfloat16)
        save_policy(new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path())), path)
    return path


def tiny_config() -> Qwen3_5TextConfig:
    """3.6M parameters in eight full-attention layers: deep enough that a one-layer head is clearly weaker."""
    return base_config(["full_attention"] * 8)


def tiny_hybrid_config() -> Qwen3_5TextConfig:
    """Three Gated DeltaNet layers to one of full attention, as Qwen3.5 has them; head dims 128, as engines demand."""
    return base_config(["linear_attention", "linear_attention", "linear_attention", "full_attention"])


def base_config(layer_types: list[str]) -> Qwen3_5TextConfig:
    return Qwen3_5TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=len(layer_types),
        layer_types=layer_types,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        dtype="bfloat16",
        architectures=["Qwen3_5ForCausalLM"],
    )
