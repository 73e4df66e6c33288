"""From a name or a directory to a Policy: check everything by headers, then load."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bebop.errors import UserError
from bebop.models.census import take_census
from bebop.models.checkpoint import CONFIG_FILE, Checkpoint, read_json
from bebop.models.contracts import HeadContract, HeadOptions
from bebop.models.fresh import initialise_head
from bebop.models.head import MTPHead, head_config
from bebop.models.names import resolve_name
from bebop.models.naming import EMBEDDING, LM_HEAD, Slot, head_slot, stored_head_name
from bebop.models.quiet import is_watched, quiet_transformers
from bebop.models.record import Policy, build_head
from bebop.models.shards import StoredTensor
from bebop.models.spec import PolicySpec, check_backbone, read_spec, same_bytes, stored_dtype

HeadChoice = Literal["auto", "fresh", "none"]
_log = logging.getLogger(__name__)


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    head: HeadChoice = "auto",
    options: HeadOptions | None = None,
    strict: bool = False,
) -> Policy:
    """Loads a policy; nothing is fetched from a network and no code of the checkpoint is run.

    name_or_path: a checkpoint directory or a built-in name (`bebop.models.names.BUILT_IN`). dtype: to compute in;
    None = the checkpoint's (see `recommended_dtype` for CPUs). head: "auto" = the checkpoint's, or None where it has
    none; "fresh" = a new one, started from the backbone; "none" = no head. options: choices on the points that
    engines wire differently. strict: refuse, instead of warning, a head that was trained on another backbone.
    UserError where directory, config and tensors do not fit together, naming what does not.
    """
    if head not in ("auto", "fresh", "none"):
        raise UserError(f"head={head!r} is not a choice; use 'auto', 'fresh' or 'none'.")
    spec = read_spec(resolve_name(name_or_path), options=options, need_contract=head != "none")
    check_backbone(spec)
    slots = check_head(spec) if head == "auto" else None
    target = torch.device(device or "cpu")
    backbone = _load_backbone(spec, dtype or stored_dtype(spec), target)
    policy = Policy(
        backbone=backbone,
        tokenizer=load_tokenizer(spec.directory, spec.config),
        contract=spec.contract,
        source=spec.directory,
    )
    if head == "fresh":
        return replace(policy, head=_fresh_head(spec, backbone))
    if slots is None:
        return policy
    few = spec.record.draft_vocabulary if spec.record else None
    policy = replace(policy, head=_load_head(spec, slots, backbone), draft_vocabulary=few)
    return _with_provenance(policy, spec, strict=strict)


def check_head(spec: PolicySpec) -> dict[str, Slot] | None:
    """Census of the head by headers alone: slots by full stored name, or None where the checkpoint has no head."""
    contract, checkpoint = spec.contract, spec.head_checkpoint
    assert contract is not None
    if spec.promised_modules > 1:
        raise UserError(
            f"{spec.directory} has {spec.promised_modules} MTP modules ({contract.count_key}); Bebop applies one "
            "recurrently, so load it with head='fresh' or head='none'."
        )
    if checkpoint is None:
        if spec.promised_modules:
            raise UserError(
                f"{spec.directory}: config.json announces an MTP head ({contract.count_key}=1) but no tensor is under "
                f"{spec.head_prefix}*; put it back with `bebop policy stitch`, or load with head='fresh' or 'none'."
            )
        return None
    prefix = spec.head_prefix or ""
    config = loaded_head_config(spec)
    with torch.device("meta"):
        parameters = MTPHead(contract, config).state_dict()
    return head_census(checkpoint, prefix, contract, parameters)


def head_census(
    checkpoint: Checkpoint, prefix: str, contract: HeadContract, parameters: Mapping[str, Tensor]
) -> dict[str, Slot]:
    """Slots of a head's stored tensors, copies of shared weights left out."""
    slots = {name: head_slot(name.removeprefix(prefix), contract) for name in checkpoint.names_under(prefix)}
    own = {name: slot for name, slot in slots.items() if slot is not None}
    return take_census(
        {name: checkpoint.tensors[name] for name in own},
        own.__getitem__,
        parameters,
        what=f"The {contract.name} head in {checkpoint.directory}",
        spell=lambda parameter: prefix + stored_head_name(parameter, contract),
    )


def loaded_head_config(spec: PolicySpec) -> PreTrainedConfig:
    """The head's config: the draft directory's own where there is one, else derived from the backbone's."""
    assert spec.contract is not None
    if spec.contract.subdirectory is None:
        return head_config(spec.contract, spec.config)
    return read_draft_config(spec.directory / spec.contract.subdirectory, spec.config)


def read_draft_config(draft: Path, backbone_config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a draft directory; UserError where it was made for another hidden size or vocabulary."""
    raw = read_json(draft / CONFIG_FILE)
    if raw.get("model_type") != "llama":
        raise UserError(
            f"{draft / CONFIG_FILE} is of type {raw.get('model_type')!r}; an EAGLE draft is of type 'llama'."
        )
    config = LlamaConfig.from_pretrained(draft, local_files_only=True)
    for key in ("hidden_size", "vocab_size"):
        wanted = getattr(backbone_config, key)
        if getattr(config, key) != wanted:
            raise UserError(
                f"{draft} has {key}={getattr(config, key)} where the backbone has {wanted}; use a head made for it."
            )
    return config


def _load_backbone(spec: PolicySpec, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with quiet_transformers(bars=is_watched()):
        backbone = AutoModelForCausalLM.from_pretrained(
            spec.directory, config=spec.config, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    nn.Module.to(backbone, device)
    return backbone.eval()


def load_tokenizer(directory: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase | None:
    """The directory's tokenizer; None where it has none."""
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(directory, config=config, local_files_only=True)


def _fresh_head(spec: PolicySpec, backbone: PreTrainedModel) -> MTPHead:
    assert spec.contract is not None
    config = head_config(spec.contract, backbone.config)
    head = build_head(spec.contract, config, dtype=backbone.dtype, device=backbone.device)
    initialise_head(head, backbone)
    return head


@torch.no_grad()
def _load_head(spec: PolicySpec, slots: Mapping[str, Slot], backbone: PreTrainedModel) -> MTPHead:
    contract, checkpoint = spec.contract, spec.head_checkpoint
    assert contract is not None and checkpoint is not None
    config = loaded_head_config(spec)
    config._attn_implementation = backbone.config._attn_implementation
    head = build_head(contract, config, dtype=backbone.dtype, device=backbone.device)
    parameters = head.state_dict()
    for name, slot in slots.items():
        view = slot.view(parameters)
        assert view is not None
        view.copy_(checkpoint.tensors[name].read())
    _report_copies(spec)
    return head


def _report_copies(spec: PolicySpec) -> None:
    """Bebop drafts with the shared embedding and lm_head; a checkpoint whose own copies differ is told so."""
    for name, shared in shared_copies(spec).items():
        if not same_bytes(spec.checkpoint.tensors[name], shared):
            _log.warning("%s: %s differs from %s; drafting uses the latter.", spec.directory, name, shared.name)


def shared_copies(spec: PolicySpec) -> dict[str, StoredTensor]:
    """The head's stored copies of embedding and lm_head, each with the shared tensor it should equal."""
    if spec.contract is None or spec.head_prefix is None:
        return {}
    tensors, names = spec.checkpoint.tensors, spec.contract.names
    embedding = tensors.get(EMBEDDING)
    pairs = {names.embedding_copy: embedding, names.lm_head_copy: tensors.get(LM_HEAD, embedding)}
    return {
        spec.head_prefix + copy: shared
        for copy, shared in pairs.items()
        if copy is not None and shared is not None and spec.head_prefix + copy in tensors
    }


def _with_provenance(policy: Policy, spec: PolicySpec, *, strict: bool) -> Policy:
    trained_on = spec.record.trained_on if spec.record else None
    if trained_on is None or trained_on == policy.fingerprint.backbone:
        return replace(policy, head_trained_on=trained_on)
    message = f"{spec.directory}: the head was trained on another backbone (sha256 {trained_on[:12]}...)"
    if strict:
        raise UserError(f"{message}; retrain it with `bebop train-mtp`, or load without strict.")
    _log.warning("%s; expect lower acceptance unless the backbone was only tuned by RL.", message)
    return replace(policy, head_trained_on=trained_on)
