"""Which tensors of a checkpoint a policy in memory replaces, and by what: the decisions behind `save_policy`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bebop.models.contracts import HeadContract
from bebop.models.head import MTPHead
from bebop.models.loading import shared_copies
from bebop.models.naming import EMBEDDING, LM_HEAD, Slot, backbone_slot, head_slot, head_tensor_names
from bebop.models.shards import TORCH_DTYPES, PlannedTensor, StoredTensor
from bebop.models.spec import PolicySpec, same_bytes

Plan = dict[str, PlannedTensor]


def plan_backbone(spec: PolicySpec, parameters: Mapping[str, Tensor]) -> Plan:
    """Stored backbone tensors whose value changed, in the stored dtype; copies that the head keeps of them follow."""
    plan: Plan = {}
    for name, stored in spec.backbone_tensors.items():
        view = backbone_slot(name).view(parameters)
        assert view is not None, f"{name} has no place in the backbone"
        planned = replanned(stored, view)
        if planned is not None:
            plan[name] = planned
    for name, shared in shared_copies(spec).items():
        if shared.name in plan and same_bytes(spec.checkpoint.tensors[name], shared):
            plan[name] = replace(plan[shared.name], name=name)
    return plan


def replanned(stored: StoredTensor, current: Tensor) -> PlannedTensor | None:
    """A plan to write `current` in place of `stored`; None where it still is what was read.

    The comparison is made in the dtype of memory, so that a policy computed with in less precision than it is stored in
    does not lose the precision of what it never touched.
    """
    current = current.detach().to("cpu")
    if torch.equal(stored.read().to(current.dtype), current):
        return None
    return PlannedTensor.of(stored.name, current.to(TORCH_DTYPES[stored.dtype]))


def plan_inline_head(head: MTPHead, spec: PolicySpec, dtype: torch.dtype) -> Plan:
    """Every tensor of a head that lives among the backbone's: the names read where there were any, else the contract's.

    dtype: of tensors that are new to the checkpoint.
    """
    assert spec.head_prefix is not None
    contract, prefix, parameters = head.contract, spec.head_prefix, head.state_dict()
    names = spec.checkpoint.names_under(prefix)
    if names:
        slots = {name: head_slot(name.removeprefix(prefix), contract) for name in names}
        own = {name: slot for name, slot in slots.items() if slot is not None}
        copies = {name: PlannedTensor.unchanged(spec.checkpoint.tensors[name]) for name in names if name not in own}
        return copies | {name: _plan_one(spec.checkpoint.tensors[name], own[name], parameters) for name in own}
    plan = plan_new_head(contract, parameters, dtype=dtype, prefix=prefix)
    return plan | new_copies(contract, spec)


def plan_new_head(contract: HeadContract, parameters: Mapping[str, Tensor], *, dtype: torch.dtype, prefix: str) -> Plan:
    """Every tensor of a head under the contract's own names and expert layout, routing biases in float32."""
    plan: Plan = {}
    for name in head_tensor_names(contract, parameters):
        slot = head_slot(name, contract)
        view = slot.view(parameters) if slot else None
        assert view is not None, f"{name} has no place in the head"
        keeps_float32 = name.endswith("e_score_correction_bias")
        plan[prefix + name] = PlannedTensor.of(
            prefix + name, view.detach().to(torch.float32 if keeps_float32 else dtype)
        )
    return plan


def _plan_one(stored: StoredTensor, slot: Slot, parameters: Mapping[str, Tensor]) -> PlannedTensor:
    view = slot.view(parameters)
    assert view is not None, f"{stored.name} has no place in the head"
    return replanned(stored, view) or PlannedTensor.unchanged(stored)


def new_copies(contract: HeadContract, spec: PolicySpec) -> Plan:
    """The copies of embedding and lm_head that engines expect beside a DeepSeek-style head."""
    tensors, prefix = spec.checkpoint.tensors, spec.head_prefix or ""
    shared = {contract.names.embedding_copy: EMBEDDING, contract.names.lm_head_copy: LM_HEAD}
    plan: Plan = {}
    for copy, original in shared.items():
        if copy is not None:
            stored = tensors.get(original, tensors[EMBEDDING])
            plan[prefix + copy] = replace(PlannedTensor.unchanged(stored), name=prefix + copy)
    return plan
