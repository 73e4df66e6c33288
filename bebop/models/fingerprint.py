"""sha256 per tensor group, equal wherever the values are equal: independent of storage layout, device and float width.

Values are hashed as float32, so a bfloat16 checkpoint computed with in float32 keeps its fingerprint; one whose
float32 weights are narrowed to bfloat16 does not, because those are other values. Tensors are hashed on all cores.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bebop.models.naming import EMBEDDING, LM_HEAD

_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """Hex digests of a policy's tensor groups; `lm_head` equals the embedding's digest where they are tied."""

    head: str | None
    embedding: str
    lm_head: str
    backbone: str

    def differing_groups(self, other: Fingerprint) -> tuple[str, ...]:
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))


def fingerprint_of(backbone: PreTrainedModel, head: nn.Module | None) -> Fingerprint:
    """Digests of all four groups. `backbone` covers everything but embedding and lm_head."""
    groups = backbone_groups(backbone)
    return Fingerprint(
        head=None if head is None else group_digest(tensor_digests(head.state_dict())),
        embedding=group_digest(tensor_digests(groups["embedding"])),
        lm_head=group_digest(tensor_digests(groups["lm_head"])),
        backbone=group_digest(tensor_digests(groups["backbone"])),
    )


def backbone_groups(backbone: PreTrainedModel) -> dict[str, dict[str, Tensor]]:
    """The model's tensors split into `embedding`, `lm_head` and `backbone` (the rest), by parameter name."""
    state = backbone.state_dict()
    embedding, lm_head = state.pop(EMBEDDING), state.pop(LM_HEAD)
    return {"embedding": {"weight": embedding}, "lm_head": {"weight": lm_head}, "backbone": state}


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of each tensor's values in row-major order, so that a difference can be named."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(tensors, pool.map(_tensor_digest, tensors.values()), strict=True))


def group_digest(digests: Mapping[str, str]) -> str:
    """One digest of a group's names and tensor digests, whatever their order."""
    return hashlib.sha256("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode()).hexdigest()


def differing_tensors(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose digest differs or that only one side has, sorted."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _tensor_digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in float32_chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def float32_chunks(tensor: Tensor) -> Iterable[bytes]:
    """The values in row-major order as float32 (integers as they are), a few megabytes at a time."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
        part = flat[start : start + _CHUNK_ELEMENTS].to("cpu")
        if flat.is_floating_point():
            # Adding 0 takes the sign off zeros: equal values have one digest, also from engines that lose that sign.
            part = part.to(torch.float32) + 0.0
        yield part.contiguous().numpy().tobytes()
