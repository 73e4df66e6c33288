"""Small random policies of every supported architecture, and their files seen through the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from bebop.models.contracts import CONTRACTS, HeadContract, HeadOptions
from bebop.models.policy import Policy, new_policy

VOCAB = 61
HIDDEN = 32
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_QWEN = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_QWEN_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 10,
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
_GROUPED_MOE = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}


def make_config(name: str, *, tied: bool = False) -> PreTrainedConfig:
    """A config by the name of its case: a contract's, or a model type that takes an eagle head."""
    common = {**_SIZES, "tie_word_embeddings": tied}
    match name:
        case "qwen3_5":
            return Qwen3_5TextConfig(**common, **_QWEN, rope_parameters=dict(_MROPE))
        case "qwen3_5_moe":
            return Qwen3_5MoeTextConfig(**common, **_QWEN, **_QWEN_MOE, rope_parameters=dict(_MROPE))
        case "qwen3_next":
            return Qwen3NextConfig(**common, **_QWEN, **_QWEN_MOE)
        case "mimo" | "qwen2":
            return Qwen2Config(**common)
        case "deepseek_v3":
            mla = {"q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
            return DeepseekV3Config(**{**common, "num_key_value_heads": 4}, **mla, **_GROUPED_MOE)
        case "glm4_moe":
            return Glm4MoeConfig(**common, head_dim=8, use_qk_norm=True, attention_bias=True, **_GROUPED_MOE)
        case "llama":
            return LlamaConfig(**common)
        case "qwen3":
            return Qwen3Config(**common, head_dim=16)
    raise AssertionError(name)


CASES = ("qwen3_5", "qwen3_5_moe", "qwen3_next", "mimo", "deepseek_v3", "glm4_moe", "llama", "qwen2", "qwen3")


def contract_of(name: str) -> HeadContract:
    """The contract a case's policies have."""
    return next(c for c in CONTRACTS if name == c.name or (c.name == "eagle" and name in c.model_types))


def make_policy(name: str, *, tied: bool = False, options: HeadOptions | None = None, seed: int = 0) -> Policy:
    """A float32 policy in which every tensor of the head is random: no norm weight, no bias at a neutral value."""
    torch.manual_seed(seed)
    backbone = AutoModelForCausalLM.from_config(make_config(name, tied=tied)).eval()
    for tensor in backbone.state_dict().values():
        tensor.add_(0.05 * torch.randn_like(tensor))
    policy = new_policy(backbone, contract=contract_of(name), options=options, seed=seed)
    assert policy.head is not None
    for tensor in policy.head.state_dict().values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    return policy


Raw = dict[str, tuple[torch.dtype, bytes]]


def read_raw(directory: Path) -> Raw:
    """Every tensor of a directory and its draft directory: dtype, shape and bytes, read by the safetensors library."""
    found: Raw = {}
    for file in sorted(directory.rglob("*.safetensors")):
        prefix = "" if file.parent == directory else f"{file.parent.name}/"
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (safe_open is no mapping)
                tensor = handle.get_tensor(name)
                raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                assert prefix + name not in found, f"{name} is stored twice"
                found[prefix + name] = (tensor.dtype, str(tuple(tensor.shape)).encode() + raw)
    return found


def rewrite(directory: Path, tensors: dict[str, torch.Tensor], *, num_shards: int = 1) -> None:
    """Replaces a directory's weights by `tensors`, with safetensors' own writer, sharded and indexed if asked."""
    for file in directory.glob("model*.safetensors*"):
        file.unlink()
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for index in range(num_shards):
        shard = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[index::num_shards]}
        save_file(part, directory / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))


def load_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a directory's own shards (no draft directory)."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            tensors |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return tensors


def edit_json(file: Path, **changes: object) -> None:
    """Sets keys of a JSON file; a value of None removes the key."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
