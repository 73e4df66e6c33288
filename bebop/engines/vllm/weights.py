"""Our tensor names against the checkpoint's and vLLM's: for updates, and for reading fingerprints back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from bebop.engines.embedded.weights import HEAD_PREFIX
from bebop.errors import UserError
from bebop.models.fingerprint import Fingerprint, group_digest
from bebop.models.loading import check_head
from bebop.models.naming import EMBEDDING, LM_HEAD, Slot, backbone_slot, head_slot
from bebop.models.shards import StoredTensor
from bebop.models.spec import PolicySpec, check_backbone

# vLLM numbers MiMo's module after the backbone's layers, checkpoints from 0.
_MIMO_LAYER = re.compile(r"^model\.mtp_layers\.\d+\.")
_DRAFT_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """Tensors by checkpoint name, for vLLM's target model and for its draft model."""

    target: Mapping[str, Tensor]
    draft: Mapping[str, Tensor]


class WeightNames:
    """Where each tensor of a policy is in its checkpoint."""

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._backbone = check_backbone(spec)
        self._head = (check_head(spec) or {}) if spec.contract and spec.head_checkpoint else {}

    def update(self, tensors: Mapping[str, Tensor]) -> Update:
        """What brings ``tensors`` (named as for ``Engine.load_weights``) into vLLM.

        vLLM loads layers whole, so an update has all of the backbone, all of the head, or both. UserError otherwise.
        """
        head = {name.removeprefix(HEAD_PREFIX): t for name, t in tensors.items() if name.startswith(HEAD_PREFIX)}
        backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD_PREFIX)}
        _refuse_unknown(backbone, self._backbone, "")
        _refuse_unknown(head, self._head, HEAD_PREFIX)
        head_tensors = self._spec.head_checkpoint.tensors if self._spec.head_checkpoint else {}
        return Update(
            target=dict(_stored(backbone, self._backbone, self._spec.backbone_tensors)) if backbone else {},
            draft=dict(_stored(head, self._head, head_tensors)) if head else {},
        )

    def groups(self, digests: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
        """Digests by group (head, where there is one, embedding, lm_head, backbone) and by our names in it.

        UserError where vLLM's draft model has an embedding or lm_head of its own that differs from the target's: drafts
        would come from stale weights.
        """
        backbone = {_target_name(name): digest for name, digest in digests["target"].items()}
        embedding = backbone.pop(EMBEDDING)
        lm_head = backbone.pop(LM_HEAD, embedding)
        draft = dict(digests.get("draft", {}))
        for name, shared in ((_DRAFT_EMBEDDING, embedding), (LM_HEAD, lm_head)):
            if draft.pop(name, shared) != shared:
                raise UserError(
                    f"vLLM's draft model holds a {name} that differs from the target's; open the engine anew"
                )
        head = {self._head_parameter(name): digest for name, digest in draft.items()}
        groups = {"embedding": {"weight": embedding}, "lm_head": {"weight": lm_head}, "backbone": backbone}
        return {"head": head, **groups} if head else groups

    def fingerprint(self, digests: Mapping[str, Mapping[str, str]]) -> Fingerprint:
        """The same as a policy's fingerprint."""
        found = {name: group_digest(one) for name, one in self.groups(digests).items()}
        return Fingerprint(**{"head": None, **found})

    def held(self, digests: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
        """Of the groups, those that drafting needs."""
        groups = self.groups(digests)
        return {name: groups[name] for name in ("head", "embedding", "lm_head") if name in groups}

    def _head_parameter(self, name: str) -> str:
        """Our name of a tensor of vLLM's draft model."""
        contract, prefix = self._spec.contract, self._spec.head_prefix
        assert contract is not None
        bare = _MIMO_LAYER.sub("model.mtp_layers.0.", name.replace(".mtp_block.", "."))
        bare = bare.removeprefix(prefix) if prefix and bare.startswith(prefix) else bare.removeprefix("model.")
        slot = head_slot(bare, contract)
        return slot.parameter if slot else name


def _target_name(name: str) -> str:
    return backbone_slot(name.removeprefix("language_model.")).parameter


def _refuse_unknown(tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], prefix: str) -> None:
    """All tensors of a part or none, and no others; a tied lm_head may be left out."""
    if not tensors:
        return
    known = {slot.parameter for slot in slots.values()}
    for name in tensors:
        if name not in known and name != LM_HEAD:
            raise UserError(
                f"the policy has no tensor {prefix + name!r}; name tensors as in its state_dict, the head's after "
                "'head.'"
            )
    missing = sorted(known - tensors.keys())
    if missing:
        raise UserError(
            f"the update lacks {prefix + missing[0]!r} ({len(missing)} tensors in all), and vLLM loads layers whole; "
            "send the whole backbone, the whole head, or both"
        )


def _stored(
    tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, Tensor]]:
    for name, slot in slots.items():
        view = slot.view(tensors)
        assert view is not None, f"{name} has no tensor"
        if tuple(view.shape) != stored[name].shape:
            raise UserError(
                f"tensor {slot.parameter!r} has shape {tuple(view.shape)} and the policy's {stored[name].shape}; "
                "send weights of the same model"
            )
        yield name, view.detach()
