"""What a checkpoint directory says of itself, checked by headers alone before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen2Config

from bebop.errors import UserError
from bebop.models.census import take_census
from bebop.models.checkpoint import CONFIG_FILE, Checkpoint, read_json
from bebop.models.contracts import HeadContract, HeadOptions, contract_for, foreign_contract
from bebop.models.metadata import HeadRecord, read_head_record
from bebop.models.naming import EMBEDDING, LM_HEAD, Slot, backbone_slot, is_passenger
from bebop.models.shards import TORCH_DTYPES, StoredTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """A directory's config, contract and tensors; nothing is loaded yet."""

    directory: Path
    raw_config: Mapping[str, Any]
    config: PreTrainedConfig
    """The text model's config; a multimodal wrapper is taken off."""
    contract: HeadContract | None
    record: HeadRecord | None
    checkpoint: Checkpoint

    @property
    def head_prefix(self) -> str | None:
        """Prefix of the head's tensors among the backbone's; None where the head has a directory of its own."""
        if self.contract is None or self.contract.subdirectory is not None:
            return None
        return self.contract.tensor_prefix(self.config.num_hidden_layers)

    @property
    def head_checkpoint(self) -> Checkpoint | None:
        """Where the head's tensors are: this checkpoint, the draft directory inside it, or nowhere."""
        if self.contract is None:
            return None
        if self.contract.subdirectory is not None:
            draft = self.directory / self.contract.subdirectory
            return Checkpoint.open(draft) if draft.is_dir() else None
        return self.checkpoint if self.checkpoint.names_under(self.head_prefix or "") else None

    @property
    def backbone_tensors(self) -> dict[str, StoredTensor]:
        """Stored tensors that are neither the head's nor another tower's."""
        prefix = self.head_prefix
        return {
            name: tensor
            for name, tensor in self.checkpoint.tensors.items()
            if not is_passenger(name) and not (prefix and name.startswith(prefix))
        }

    @property
    def promised_modules(self) -> int:
        """How many MTP modules config.json announces."""
        key = self.contract.count_key if self.contract else None
        text = self.raw_config.get("text_config", self.raw_config)
        return int(text.get(key) or 0) if key else 0


def read_spec(directory: Path, *, options: HeadOptions | None = None, need_contract: bool = True) -> PolicySpec:
    """Opens a checkpoint directory. Options of the caller win over those of `bebop.json`, those over the contract's."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; name a checkpoint directory or a built-in policy.")
    raw = read_json(directory / CONFIG_FILE)
    config = _text_config(directory, raw)
    model_type = str(raw.get("model_type"))
    checkpoint = Checkpoint.open(directory)
    _refuse_quantised(checkpoint)
    contract = contract_for(model_type) if need_contract or _is_known(model_type) else None
    record = read_head_record(directory, contract, config.vocab_size) if contract else None
    if contract and record:
        contract = contract.with_options(record.options)
    if contract and options:
        contract = contract.with_options(options)
    return PolicySpec(
        directory=directory, raw_config=raw, config=config, contract=contract, record=record, checkpoint=checkpoint
    )


def backbone_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without storage: names and shapes to check a checkpoint against."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def check_backbone(spec: PolicySpec) -> dict[str, Slot]:
    """Census of the backbone and the tied/untied rule; slots of its stored tensors."""
    tied = bool(spec.config.tie_word_embeddings)
    stored = spec.backbone_tensors
    if not tied and LM_HEAD not in stored:
        raise UserError(
            f"{spec.directory}: {LM_HEAD} is missing though config.json says tie_word_embeddings=false; "
            "add the tensor or set tie_word_embeddings=true."
        )
    _refuse_foreign_head(spec, list(stored))
    parameters = backbone_on_meta(spec.config).state_dict()
    optional = {LM_HEAD} if tied else set()
    slots = take_census(stored, backbone_slot, parameters, what=f"The backbone in {spec.directory}", optional=optional)
    if tied and LM_HEAD in stored:
        _check_tie(spec, stored, slots)
    return slots


def _check_tie(spec: PolicySpec, stored: Mapping[str, StoredTensor], slots: Mapping[str, Slot]) -> None:
    embedding = next(name for name, slot in slots.items() if slot.parameter == EMBEDDING)
    if not same_bytes(stored[LM_HEAD], stored[embedding]):
        raise UserError(
            f"{spec.directory}: {LM_HEAD} differs from {embedding} though config.json says tie_word_embeddings=true; "
            "set it to false or remove the tensor."
        )


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are equal, a few megabytes at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(one.chunks(), other.chunks(), strict=True))


def stored_dtype(spec: PolicySpec) -> torch.dtype:
    """The dtype of the stored embedding: what "the checkpoint's dtype" means."""
    names = [name for name in spec.backbone_tensors if name.endswith("embed_tokens.weight")]
    if not names:
        raise UserError(f"{spec.directory} holds no embed_tokens.weight; it is not a causal language model.")
    return TORCH_DTYPES[spec.checkpoint.tensors[names[0]].dtype]


def _text_config(directory: Path, raw: Mapping[str, Any]) -> PreTrainedConfig:
    if raw.get("model_type") == "mimo":  # remote code only; its backbone is Qwen2's, bias and all
        ignored = {"model_type", "auto_map", "architectures"}
        return Qwen2Config(**{key: value for key, value in raw.items() if key not in ignored})
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{directory / CONFIG_FILE} describes no model that transformers knows ({reason}).") from error
    return config.get_text_config()


def _is_known(model_type: str) -> bool:
    try:
        contract_for(model_type)
    except UserError:
        return False
    return True


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype.startswith("F8") or name.endswith(("weight_scale_inv", "weight_scale", "qweight")):
            raise UserError(
                f"{tensor.file}: {name} belongs to a quantised (FP8) checkpoint, which cannot be trained; "
                "use the bfloat16 release or dequantise it first."
            )


def _refuse_foreign_head(spec: PolicySpec, names: list[str]) -> None:
    foreign = foreign_contract(names, spec.contract) if spec.contract else None
    if foreign is not None and spec.contract is not None:
        raise UserError(
            f"{spec.directory} holds a {foreign.name} head ({foreign.prefix}*) but its config asks for a "
            f"{spec.contract.name} head; stitch the head of the right architecture."
        )
