"""From our settings to vLLM's, as data; what vLLM would accept and then ignore is refused here.

The names are those of vLLM's ``EngineArgs`` (0.32). Nothing here needs vLLM to be installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bebop.engines.vllm.options import VllmOptions
from bebop.errors import UserError
from bebop.models.contracts import HeadContract
from bebop.models.shards import TORCH_DTYPES
from bebop.models.spec import PolicySpec

TRANSFER_BACKEND = "bebop"
"""Name under which the binding registers its way of bringing weights in."""
WORKER_EXTENSION = "bebop.engines.vllm.binding.WorkerExtension"
GDN_HEAD_DIM = 128
"""The one head size that vLLM's Gated DeltaNet kernels for CPU take."""
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's attention kernels for CPU take."""

# Rule -> (draft_sample_method, rejection_sample_method).
_RULES = {
    "rejection": ("probabilistic", "standard"),
    "target_only": ("greedy", "standard"),
    "block": ("probabilistic", "block"),
}
# How vLLM wires what engines wire differently: a head trained for another wiring drafts badly there, without a word.
_WIRING: Mapping[str, Mapping[str, object]] = {
    "mimo": {"input_norm": "pre", "zero_embedding_at_position_0": True},
    "deepseek_v3": {"recycle": "post", "zero_embedding_at_position_0": True},
    "glm4_moe": {"recycle": "pre", "zero_embedding_at_position_0": True},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """Where vLLM will run: what its silent choices depend on."""

    on_cpu: bool
    runner: int
    """1 or 2, the generation of vLLM's model runner; generation 2 needs Triton, so on a CPU it is 1."""
    fast_bfloat16: bool = True
    """Whether the device has instructions for bfloat16."""


def engine_arguments(spec: PolicySpec, options: VllmOptions, runtime: Runtime) -> dict[str, Any]:
    """What to construct vLLM's engine with. UserError for what it does not have, or would silently not do."""
    if runtime.on_cpu:
        _refuse_head_dim(spec)
    arguments: dict[str, Any] = {
        "model": str(spec.directory),
        "dtype": _dtype(spec, options, runtime),
        "max_num_seqs": options.max_rows,
        "kv_cache_memory_bytes": options.cache_bytes,
        "enable_prefix_caching": False,
        "enforce_eager": not options.compile,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1 if options.record_distribution else 1,
        "weight_transfer_config": {"backend": TRANSFER_BACKEND},
        "worker_extension_cls": WORKER_EXTENSION,
        "generation_config": "vllm",
        "seed": 0,
    }
    if options.max_context is not None:
        _refuse_beyond(options.max_context, spec)
        arguments["max_model_len"] = options.max_context
    if options.num_draft_tokens > 0:
        arguments["speculative_config"] = speculative_config(spec, options, runtime)
        arguments["per_request_spec_decode_metrics"] = "detailed"
    return arguments


def speculative_config(spec: PolicySpec, options: VllmOptions, runtime: Runtime) -> dict[str, Any]:
    """vLLM's ``speculative_config`` for the policy's head."""
    contract, head = spec.contract, spec.head_checkpoint
    if contract is None or head is None:
        raise UserError(
            f"{spec.directory} has no MTP head to draft with; set num_draft_tokens to 0 or stitch one to it"
        )
    draft_method, rejection_method = rule_methods(options.rule, runtime)
    _refuse_other_wiring(contract)
    config: dict[str, Any] = {
        "method": "eagle" if contract.subdirectory else "mtp",
        "num_speculative_tokens": options.num_draft_tokens,
        "draft_sample_method": draft_method,
        "rejection_sample_method": rejection_method,
    }
    if contract.subdirectory:
        config["model"] = str(spec.directory / contract.subdirectory)
    return config


def rule_methods(rule: str, runtime: Runtime) -> tuple[str, str]:
    """``draft_sample_method`` and ``rejection_sample_method`` of one of our rules."""
    if rule not in _RULES:
        raise UserError(f"vLLM has no rule {rule!r}; use one of {', '.join(_RULES)}, or the embedded engine")
    if rule == "block" and runtime.runner == 1:
        raise UserError(
            "vLLM's first model runner, which it takes here, ignores rule 'block' and drafts greedily instead; "
            "use rule 'rejection', or run where vLLM takes its second one (a GPU with Triton)"
        )
    return _RULES[rule]


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """The same arguments for the command line of ``vllm serve`` (after the model)."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if name == "model":
            continue
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag.removeprefix("--"))
        else:
            flags += [flag, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return flags


def _refuse_head_dim(spec: PolicySpec) -> None:
    config = spec.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if getattr(config, "kv_lora_rank", None) is None and size not in CPU_HEAD_DIMS:
        raise UserError(
            f"vLLM's attention on a CPU takes heads of {', '.join(map(str, CPU_HEAD_DIMS))}, and {spec.directory} has "
            f"{size}; serve this policy on a GPU or with the embedded engine"
        )


def _refuse_beyond(max_context: int, spec: PolicySpec) -> None:
    limit = spec.config.max_position_embeddings
    if max_context > limit:
        raise UserError(f"max_context is {max_context} and {spec.directory} has {limit} positions; ask for fewer")


def _dtype(spec: PolicySpec, options: VllmOptions, runtime: Runtime) -> str:
    """The dtype to compute in, by name; never vLLM's "auto", which narrows a float32 checkpoint."""
    gated = "linear_attention" in (getattr(spec.config, "layer_types", None) or ())
    if gated and runtime.on_cpu:
        return _gated_dtype(spec, options)
    if options.dtype != "auto":
        return options.dtype
    if runtime.on_cpu and not runtime.fast_bfloat16:
        return "float32"
    stored = next(iter(spec.backbone_tensors.values())).dtype
    return str(TORCH_DTYPES[stored]).removeprefix("torch.")


def _gated_dtype(spec: PolicySpec, options: VllmOptions) -> str:
    """vLLM's Gated DeltaNet on a CPU computes in bfloat16 alone, with heads of one size."""
    if options.dtype not in ("auto", "bfloat16"):
        raise UserError(
            f"vLLM's Gated DeltaNet on a CPU computes in bfloat16 only; set dtype to bfloat16, not {options.dtype}"
        )
    sizes = {spec.config.linear_key_head_dim, spec.config.linear_value_head_dim}
    if sizes != {GDN_HEAD_DIM}:
        raise UserError(
            f"vLLM's Gated DeltaNet on a CPU takes heads of size {GDN_HEAD_DIM}, and {spec.directory} has "
            f"{sorted(sizes)}; serve this policy on a GPU or with the embedded engine"
        )
    return "bfloat16"


def _refuse_other_wiring(contract: HeadContract) -> None:
    """A head that was trained for another wiring than vLLM's."""
    for name, served in _WIRING.get(contract.name, {}).items():
        trained = getattr(contract, name)
        if trained != served:
            raise UserError(
                f"this {contract.name} head was made with {name}={trained}, and vLLM serves {name}={served} whatever "
                f"the checkpoint says; train the head with {name}={served} to serve it there"
            )
