"""Fingerprints of a checkpoint directory, tensor by tensor from disk; a policy loaded from it has the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from bebop.models.fingerprint import Fingerprint, float32_chunks, group_digest
from bebop.models.loading import check_head
from bebop.models.naming import EMBEDDING, LM_HEAD, Slot
from bebop.models.shards import StoredTensor
from bebop.models.spec import PolicySpec, check_backbone

_PART_ORDER = ("gate", "up", "down")


def stored_fingerprint(spec: PolicySpec) -> Fingerprint:
    """Digests of all four groups; holds one tensor in memory at a time. Raises what the census raises."""
    backbone = _digests(check_backbone(spec), spec.checkpoint.tensors)
    embedding = backbone.pop(EMBEDDING)
    lm_head = backbone.pop(LM_HEAD, embedding)
    slots = check_head(spec) if spec.contract else None
    head_tensors = spec.head_checkpoint.tensors if slots and spec.head_checkpoint else {}
    return Fingerprint(
        head=group_digest(_digests(slots, head_tensors)) if slots else None,
        embedding=group_digest({"weight": embedding}),
        lm_head=group_digest({"weight": lm_head}),
        backbone=group_digest(backbone),
    )


def _digests(slots: Mapping[str, Slot], tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Digest per parameter; the experts of a stacked one are hashed in the order in which they are stacked."""
    pieces: dict[str, list[tuple[tuple[int, int], StoredTensor]]] = {}
    for name, slot in slots.items():
        order = (slot.expert or 0, _PART_ORDER.index(slot.part or "gate"))
        pieces.setdefault(slot.parameter, []).append((order, tensors[name]))
    return {
        parameter: _digest([tensor for _, tensor in sorted(p, key=lambda x: x[0])]) for parameter, p in pieces.items()
    }


def _digest(pieces: list[StoredTensor]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        for chunk in float32_chunks(piece.read()):
            digest.update(chunk)
    return digest.hexdigest()
