"""Every stored tensor must have a place in the model, every place in the model a stored tensor of its shape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from bebop.errors import UserError
from bebop.models.naming import Slot
from bebop.models.shards import StoredTensor

_NUM_NAMED = 4


def take_census(
    stored: Mapping[str, StoredTensor],
    slot_of: Callable[[str], Slot],
    parameters: Mapping[str, Tensor],
    *,
    what: str,
    optional: Collection[str] = (),
    spell: Callable[[str], str] = str,
) -> dict[str, Slot]:
    """Slot of every stored name. UserError naming what is unexpected, wrongly shaped, missing or incomplete.

    `parameters` may live on the meta device; `what` names the thing in messages and `spell` a parameter as the
    checkpoint would; `optional` parameters may be absent.
    """
    slots = {name: slot_of(name) for name in stored}
    unexpected = [name for name, slot in slots.items() if slot.view(parameters) is None]
    _refuse(what, "unexpected", unexpected)
    misshapen = [
        f"{name} {list(stored[name].shape)} instead of {list(view.shape)}"
        for name, slot in slots.items()
        if (view := slot.view(parameters)) is not None and tuple(view.shape) != stored[name].shape
    ]
    _refuse(what, "wrongly shaped", misshapen)
    filled = dict.fromkeys(parameters, 0)
    for name, slot in slots.items():
        filled[slot.parameter] += stored[name].num_elements
    missing = [
        spell(name) for name, tensor in parameters.items() if filled[name] < tensor.numel() and name not in optional
    ]
    _refuse(what, "missing", missing)
    doubled = [spell(name) for name, tensor in parameters.items() if filled[name] > tensor.numel()]
    _refuse(what, "doubly stored", doubled)
    return slots


def _refuse(what: str, problem: str, names: list[str]) -> None:
    if not names:
        return
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    raise UserError(
        f"{what} has {problem} tensors: {', '.join(names[:_NUM_NAMED])}{more}; "
        "config and weights must be of the same architecture and size."
    )
