"""Checkpoint names against parameter names, for backbones and heads: one mapping, used for reading and for writing.

A checkpoint tensor is a *slot*: a parameter, or the part of a stacked expert parameter that belongs to one expert.
Because a slot is a view, reading copies into it, writing copies out of it, and both expert layouts need no code of
their own.

Stacked experts: `experts.gate_up_proj` [E, 2 Im, H] (gate rows first) and `experts.down_proj` [E, H, Im].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bebop.models.contracts import HeadContract, HeadNames

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
_EXPERT = re.compile(r"(?P<block>.*mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")
_WRAPPER_PREFIX = "model.language_model."
# The other towers of a multimodal checkpoint: carried along, never computed with.
_PASSENGER_PREFIXES = ("model.visual.",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A parameter (`expert` None), or one expert's part of a stacked one."""

    parameter: str
    expert: int | None = None
    part: Literal["gate", "up", "down"] | None = None

    def view(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The part of the parameter that this slot stands for; None where there is no such parameter or expert."""
        tensor = parameters.get(self.parameter)
        if tensor is None or self.expert is None:
            return tensor
        if self.expert >= tensor.shape[0]:
            return None
        one = tensor[self.expert]
        half = one.shape[0] // 2
        return {"gate": one[:half], "up": one[half:], "down": one}[self.part or "down"]


def expert_slot(name: str) -> Slot:
    """The slot of a name that is already canonical, per-expert names resolved to the stacked parameter."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return Slot(parameter=name)
    part: Literal["gate", "up", "down"] = match["part"]  # type: ignore[assignment]
    stacked = "down_proj" if part == "down" else "gate_up_proj"
    return Slot(parameter=f"{match['block']}.{stacked}", expert=int(match["expert"]), part=part)


def is_passenger(name: str) -> bool:
    return name.startswith(_PASSENGER_PREFIXES)


def backbone_slot(name: str) -> Slot:
    """The slot of a backbone tensor, with or without the multimodal wrapper's prefix."""
    if name.startswith(_WRAPPER_PREFIX):
        name = "model." + name.removeprefix(_WRAPPER_PREFIX)
    return expert_slot(name)


def head_slot(name: str, contract: HeadContract) -> Slot | None:
    """The slot of a head tensor (its name without the contract's prefix); None for the copies of shared weights."""
    names = contract.names
    if name in (names.embedding_copy, names.lm_head_copy):
        return None
    for canonical, stored in _head_parts(names).items():
        if name == stored:
            return Slot(parameter=canonical)
    if not name.startswith(names.layer):
        return Slot(parameter=name)
    return expert_slot("layer." + name.removeprefix(names.layer))


def stored_head_name(parameter: str, contract: HeadContract) -> str:
    """The checkpoint name (without prefix) of a head parameter."""
    return _head_parts(contract.names).get(parameter, contract.names.layer + parameter.removeprefix("layer."))


def head_tensor_names(contract: HeadContract, parameters: Mapping[str, Tensor]) -> list[str]:
    """The names (without prefix) under which a fresh head is stored, in the contract's own expert layout."""
    stored: list[str] = []
    for parameter, tensor in parameters.items():
        name = stored_head_name(parameter, contract)
        stored.extend(_expert_names(name, tensor.shape[0]) if _splits(name, contract) else [name])
    return stored


def _splits(name: str, contract: HeadContract) -> bool:
    return contract.expert_layout == "per_expert" and name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def _expert_names(stacked: str, num_experts: int) -> list[str]:
    block, _, kind = stacked.rpartition(".")
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    return [f"{block}.{expert}.{part}.weight" for expert in range(num_experts) for part in parts]


def _head_parts(names: HeadNames) -> dict[str, str]:
    parts = {
        "fuse.weight": names.fuse,
        "embedding_norm.weight": names.embedding_norm,
        "hidden_norm.weight": names.hidden_norm,
        "output_norm.weight": names.output_norm,
    }
    return {canonical: stored for canonical, stored in parts.items() if stored is not None}
