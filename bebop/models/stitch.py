"""Puts a trained head into a checkpoint directory, streaming: no backbone is loaded, no untouched byte changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bebop.errors import UserError
from bebop.models.checkpoint import (
    CONFIG_FILE,
    SINGLE_FILE,
    Checkpoint,
    copy_side_files,
    new_directory,
    read_json,
    write_checkpoint,
    write_json,
)
from bebop.models.contracts import HeadContract
from bebop.models.head import MTPHead, head_config
from bebop.models.loading import head_census, read_draft_config
from bebop.models.metadata import HeadRecord, read_head_record, write_head_record
from bebop.models.plan import new_copies
from bebop.models.saving import announce_head
from bebop.models.shards import PlannedTensor, StoredTensor, read_header, write_shard
from bebop.models.spec import PolicySpec, check_backbone, read_spec


@dataclass(frozen=True, kw_only=True, slots=True)
class StitchReport:
    """What was stitched, what of base's former head was dropped, and the backbone the head was trained on."""

    contract: str
    num_head_tensors: int
    num_dropped: int
    trained_on: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _FoundHead:
    """A head on disk: its own tensors (no copies of shared ones), its draft config's directory, what it remembers."""

    tensors: dict[str, StoredTensor]
    directory: Path
    record: HeadRecord


def stitch(base: Path, head: Path, out: Path, *, link: bool = False) -> StitchReport:
    """Writes `base` with the head found in `head` to the new directory `out`, whole or not at all.

    head: a checkpoint that holds a head (its backbone is not looked at), a directory or one safetensors file of head
    tensors alone, or an EAGLE draft directory. link: hard-link the shards that stay as they are instead of copying
    them; neither directory may be edited in place then. The head's metadata (options, backbone trained on) comes with
    it. UserError where the head does not fit base's architecture and size, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; stitch into a new directory.")
    spec = read_spec(base)
    check_backbone(spec)
    contract = spec.contract
    assert contract is not None
    found = _find_head(head, spec, contract)
    former = _former_head(spec)
    with new_directory(out) as target:
        copy_side_files(spec.directory, target)
        if contract.subdirectory is None:
            changed = {name: PlannedTensor.unchanged(stored) for name, stored in found.tensors.items()}
            changed |= new_copies(contract, spec)
            write_checkpoint(spec.checkpoint, changed, former - set(changed), target, link=link)
        else:
            write_checkpoint(spec.checkpoint, {}, frozenset(), target, link=link)
            _write_draft(found, target / contract.subdirectory)
        announce_head(target, contract)
        write_head_record(target, contract, found.record)
    return StitchReport(
        contract=contract.name,
        num_head_tensors=len(found.tensors),
        num_dropped=len(former - set(found.tensors)),
        trained_on=found.record.trained_on,
    )


def _find_head(path: Path, spec: PolicySpec, contract: HeadContract) -> _FoundHead:
    if not path.exists():
        raise UserError(f"There is no head at {path}; name a checkpoint, a draft directory or a safetensors file.")
    record = read_head_record(path, contract, spec.config.vocab_size) if path.is_dir() else None
    draft = path / (contract.subdirectory or "")
    directory = draft if draft.is_dir() else path if path.is_dir() else path.parent
    checkpoint = Checkpoint.open(directory) if path.is_dir() else _lone_file(path)
    prefix = spec.head_prefix or ""
    if prefix + contract.names.fuse not in checkpoint.tensors:
        raise UserError(f"{path} holds no {contract.name} head: there is no {prefix}{contract.names.fuse} in it.")
    config = read_draft_config(directory, spec.config) if contract.subdirectory else head_config(contract, spec.config)
    with torch.device("meta"):
        parameters = MTPHead(contract, config).state_dict()
    slots = head_census(checkpoint, prefix, contract, parameters)
    record = record or HeadRecord(contract=contract.name, options=contract.options)
    record = replace(record, options=contract.with_options(record.options).options)
    return _FoundHead(tensors={name: checkpoint.tensors[name] for name in slots}, directory=directory, record=record)


def _lone_file(file: Path) -> Checkpoint:
    header = read_header(file)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    return Checkpoint(
        directory=file.parent,
        tensors=tensors,
        shards=(file.name,),
        metadata={file.name: header.metadata},
        indexed=False,
    )


def _former_head(spec: PolicySpec) -> frozenset[str]:
    """Names of the head tensors that base holds already."""
    checkpoint = spec.head_checkpoint
    return frozenset(checkpoint.names_under(spec.head_prefix or "")) if checkpoint else frozenset()


def _write_draft(found: _FoundHead, out: Path) -> None:
    out.mkdir()
    write_json(out / CONFIG_FILE, read_json(found.directory / CONFIG_FILE))
    write_shard(
        out / SINGLE_FILE, [PlannedTensor.unchanged(tensor) for tensor in found.tensors.values()], {"format": "pt"}
    )
