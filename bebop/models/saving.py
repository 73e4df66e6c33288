"""From a Policy to a complete checkpoint: what nobody touched is copied byte for byte, in the layout that was read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

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
from bebop.models.head import MTPHead
from bebop.models.metadata import HeadRecord, write_head_record
from bebop.models.plan import plan_backbone, plan_inline_head, plan_new_head
from bebop.models.quiet import is_watched, quiet_transformers
from bebop.models.record import Policy
from bebop.models.shards import TORCH_DTYPES, write_shard
from bebop.models.spec import PolicySpec, read_spec, stored_dtype


def save_policy(policy: Policy, path: str | Path) -> None:
    """Writes `policy` to the directory `path`, whole or not at all; a checkpoint already there is replaced.

    A policy that was read keeps its shards, index, dtypes, expert layout, passengers (vision tower) and side files; a
    tensor whose value did not change keeps its bytes. A head that was in the source but not loaded (`head="none"`) is
    carried along. A policy made in memory is written in transformers' layout. UserError where the source is gone, or
    `path` holds something that is no checkpoint.
    """
    path = Path(path)
    if policy.source is not None:
        if not policy.source.is_dir():
            raise UserError(f"{policy.source}, from which the policy was read, is gone; restore it to save the policy.")
        _save_over(policy, policy.source, path)
        return
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.base-") as scratch:
        _materialise(policy, Path(scratch))
        _save_over(policy, Path(scratch), path)


def _materialise(policy: Policy, directory: Path) -> None:
    """Backbone, config and tokenizer of a policy that has no source, as transformers saves them."""
    with quiet_transformers(bars=is_watched()):
        policy.backbone.save_pretrained(directory)
    if policy.tokenizer is not None:
        policy.tokenizer.save_pretrained(directory)
    contract = policy.contract
    if contract is not None and policy.config.model_type not in contract.model_types:
        assert contract.name == "mimo", (
            f"a {contract.name} head does not belong to a {policy.config.model_type} backbone"
        )
        # MiMo's backbone is Qwen2's class, but engines know it by its own name.
        mimo = {"model_type": "mimo", "architectures": ["MiMoForCausalLM"]}
        write_json(directory / CONFIG_FILE, {**read_json(directory / CONFIG_FILE), **mimo})


def _save_over(policy: Policy, base: Path, path: Path) -> None:
    spec = read_spec(base, need_contract=False)
    changed = plan_backbone(spec, policy.backbone.state_dict())
    if policy.head is not None and spec.head_prefix is not None:
        changed = plan_inline_head(policy.head, spec, stored_dtype(spec)) | changed
    with new_directory(path) as out:
        copy_side_files(spec.directory, out)
        write_checkpoint(spec.checkpoint, changed, frozenset(), out)
        _write_head_files(policy, spec, out)


def _write_head_files(policy: Policy, spec: PolicySpec, out: Path) -> None:
    """The draft directory of a head that has one, the config's announcement of one that has none, and `bebop.json`."""
    draft = spec.contract.subdirectory if spec.contract else None
    if policy.head is None:
        if draft and (spec.directory / draft).is_dir():
            shutil.copytree(spec.directory / draft, out / draft)
        return
    contract = policy.head.contract
    record = HeadRecord(
        contract=contract.name,
        options=contract.options,
        trained_on=policy.head_trained_on,
        draft_vocabulary=policy.draft_vocabulary,
    )
    if draft:
        write_draft(policy.head, spec, out / draft)
    announce_head(out, contract)
    write_head_record(out, contract, record)


def announce_head(directory: Path, contract: HeadContract) -> None:
    """Sets the config key by which engines know that there is a head; the file is left alone where it is set."""
    if contract.count_key is None:
        return
    config = read_json(directory / CONFIG_FILE)
    text: dict[str, Any] = config.get("text_config", config)
    if text.get(contract.count_key) != 1:
        text[contract.count_key] = 1
        write_json(directory / CONFIG_FILE, config)


def write_draft(head: MTPHead, spec: PolicySpec, out: Path) -> None:
    """A draft directory that vLLM's method `eagle` loads: config.json (EagleLlamaForCausalLM) and one weights file."""
    out.mkdir()
    before = spec.head_checkpoint
    dtype = TORCH_DTYPES[next(iter(before.tensors.values())).dtype] if before else stored_dtype(spec)
    plan = plan_new_head(head.contract, head.state_dict(), dtype=dtype, prefix="")
    write_shard(out / SINGLE_FILE, list(plan.values()), {"format": "pt"})
    config = head.config.to_diff_dict()
    config.pop("transformers_version", None)
    write_json(
        out / CONFIG_FILE,
        {
            **config,
            "architectures": ["EagleLlamaForCausalLM"],
            "model_type": head.config.model_type,
            "dtype": str(dtype).removeprefix("torch."),
        },
    )
    Checkpoint.open(out)
