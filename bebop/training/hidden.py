"""The frozen backbone's hidden states of a batch: computed when asked for, or once for the whole data set.

What is kept is one vector per token, the head's input; the target's law is rebuilt from it by the lm_head (and by the
final norm, for heads that take the hidden before it). Numbers are kept as computed, so all three ways give the same
up to the rounding that another padding brings.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bebop.files import atomic_directory
from bebop.models.policy import Policy
from bebop.training.packing import Pack, can_be_packed, decoder_inputs, single_rows
from bebop.training.samples import Sample

SHARD_BATCHES = 16
"""Forwards whose states go into one file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hiddens:
    """One forward of the backbone."""

    draft_input_BTH: Tensor
    """What depth 1 of the head takes."""
    target_BTH: Tensor
    """What enters the lm_head; the same tensor for most heads."""


HiddenSource = Callable[[Pack[Sample]], Hiddens]
"""Micro-batch -> its hidden states, on the policy's device."""
Tick = Callable[[], None]
"""Called after every forward."""
Groups = Sequence[Sequence[Sample]]
"""All samples, cut into forwards; always alike, so that a resumed run sees the same bits."""


def recomputed(policy: Policy) -> HiddenSource:
    """The backbone runs in every step."""
    is_packable = can_be_packed(policy.config)

    def of_pack(pack: Pack[Sample]) -> Hiddens:
        if pack.batch.starts_BT is not None and not is_packable:
            return alone(policy, pack)
        batch = pack.batch.to(policy.device)
        given = decoder_inputs(batch, policy.dtype)
        with torch.no_grad():
            state = policy.run_backbone(
                batch.tokens_BT, position_ids_BT=given.positions_BT, attention_mask=given.mask_B1TT
            )
        return Hiddens(draft_input_BTH=state.draft_input_BTH, target_BTH=state.hidden_BTH)

    return of_pack


def alone(policy: Policy, pack: Pack[Sample]) -> Hiddens:
    """For backbones that would carry state from one sequence into the next: one sequence a row, then packed."""
    (states,) = forwards(policy, [pack.members], lambda: None)
    return from_store(policy, states.__getitem__)(pack)


def in_memory(policy: Policy, groups: Groups, tick: Tick) -> HiddenSource:
    """The backbone runs once over all samples."""
    kept: dict[str, Tensor] = {}
    for states in forwards(policy, groups, tick):
        kept |= states
    return from_store(policy, kept.__getitem__)


def on_disk(policy: Policy, groups: Groups, directory: Path, tick: Tick) -> HiddenSource:
    """The backbone runs once over all samples, into safetensors files under ``directory``, unless they are there."""
    if not directory.exists():
        with atomic_directory(directory) as part:
            write_shards(forwards(policy, groups, tick), part)
    shards = [safe_open(path, "pt") for path in sorted(directory.glob("*.safetensors"))]
    place = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118  (safe_open is no mapping)
    return from_store(policy, lambda name: place[name].get_tensor(name))


def write_shards(states: Iterator[dict[str, Tensor]], directory: Path) -> None:
    shard: dict[str, Tensor] = {}
    for number, batch in enumerate(states, start=1):
        shard |= batch
        if number % SHARD_BATCHES == 0:
            save_file(shard, directory / f"hidden-{number:06d}.safetensors")
            shard = {}
    if shard:
        save_file(shard, directory / "hidden-last.safetensors")


def forwards(policy: Policy, groups: Groups, tick: Tick) -> Iterator[dict[str, Tensor]]:
    """Sample id -> [T, H] on the CPU, forward by forward."""
    for group in groups:
        tokens_BT = single_rows(group).batch.tokens_BT
        with torch.no_grad():
            states_BTH = policy.run_backbone(tokens_BT.to(policy.device)).draft_input_BTH.cpu()
        yield {one.id: states_BTH[row, : one.num_tokens].clone() for row, one in enumerate(group)}
        tick()


def from_store(policy: Policy, read: Callable[[str], Tensor]) -> HiddenSource:
    """Hidden states out of a store that knows them by sample id, with zeros on the padding."""
    takes_pre_norm = policy.contract is not None and policy.contract.input_norm == "pre"
    norm = policy.backbone.get_decoder().get_submodule("norm")

    def of_pack(pack: Pack[Sample]) -> Hiddens:
        shape = (*pack.batch.tokens_BT.shape, policy.config.hidden_size)
        states_BTH = torch.zeros(shape, dtype=policy.dtype)
        for one, place in zip(pack.members, pack.places, strict=True):
            states_BTH[place.row, place.start : place.start + one.num_tokens] = read(one.id)[: one.num_tokens]
        states_BTH = states_BTH.to(policy.device)
        with torch.no_grad():
            target_BTH = norm(states_BTH) if takes_pre_norm else states_BTH
        return Hiddens(draft_input_BTH=states_BTH, target_BTH=target_BTH)

    return of_pack
