"""Small random policies whose attention heads have a size that vLLM's CPU kernels take."""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from bebop.models.contracts import MIMO, HeadOptions
from bebop.models.policy import Policy, new_policy

KINDS = ("full", "hybrid", "llama", "mimo")
_SIZES = {
    "vocab_size": 16,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


def served_policy(kind: str, options: HeadOptions | None = None) -> Policy:
    """float32, with a fresh head; the Gated DeltaNet heads of "hybrid" are smaller than vLLM's CPU kernels take."""
    torch.manual_seed(0)
    return new_policy(_backbone(kind).eval(), contract=MIMO if kind == "mimo" else None, options=options)


def _backbone(kind: str) -> PreTrainedModel:
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**_SIZES))
    if kind == "mimo":
        return Qwen2ForCausalLM(Qwen2Config(**_SIZES))
    layers = {"full": ["full_attention"] * 2, "hybrid": ["linear_attention", "full_attention"]}[kind]
    gated = {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    counts = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**_SIZES, head_dim=32, layer_types=layers, **gated, **counts))


def stored_in(policy: Policy, dtype: torch.dtype) -> Policy:
    """The policy, its tensors in another dtype."""
    assert policy.head is not None
    nn.Module.to(policy.backbone, dtype)
    nn.Module.to(policy.head, dtype)
    return policy
