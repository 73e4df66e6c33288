"""Keys and values of rows that have different lengths.

Legend: S slots (rows the engine can hold), B rows in use (always the first B slots), L positions a slot can hold,
T new positions of a row, N = B T, H key heads, D head size, R rows of a prefill.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bebop.errors import UserError

_CHUNK = 256
"""Positions by which slots grow: a reallocation per 256 tokens, at most 256 unused positions per slot."""


class SlotCache:
    """One [S, L, H, D] store per layer for keys and one for values, written at each row's own positions.

    It takes the place of transformers' cache: layers call ``update``. The positions come from ``begin`` (once per
    forward, not per layer). What lies behind a row's length is stale and must be masked by the caller, so dropping
    rejected drafts costs nothing: the row's length is simply not advanced past them.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.capacity = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._flat_N = torch.empty(0, dtype=torch.long)
        self._num_rows = 0
        self.num_keys = 0
        """Positions that the forward begun last reads."""

    @property
    def num_bytes(self) -> int:
        """Memory of the stores."""
        return sum(t.numel() * t.element_size() for store in (self._keys, self._values) for t in store.values())

    def begin(self, positions_BT: Tensor, num_keys: int) -> None:
        """The next forward writes at ``positions_BT`` of slots 0..B-1 and reads positions 0..num_keys-1."""
        offsets_B1 = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None] * self.capacity
        self._flat_N = (positions_BT + offsets_B1).reshape(-1)
        self._num_rows, self.num_keys = positions_BT.shape[0], num_keys

    def update(self, key_BHTD: Tensor, value_BHTD: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Write the new positions; return views [B, H, num_keys, D] of the layer's keys and values."""
        return self.write(key_BHTD.transpose(1, 2).flatten(0, 1), value_BHTD.transpose(1, 2).flatten(0, 1), layer_idx)

    def write(self, key_NHD: Tensor, value_NHD: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """``update`` for keys and values that come token by token, N = B T."""
        return self._write(self._keys, layer, key_NHD), self._write(self._values, layer, value_NHD)

    def _write(self, stores: dict[int, Tensor], layer: int, new_NHD: Tensor) -> Tensor:
        store_SLHD = self._store(stores, layer, new_NHD)
        flat = store_SLHD.view(self.num_slots * self.capacity, *store_SLHD.shape[2:])
        flat.index_copy_(0, self._flat_N, new_NHD)
        return store_SLHD[: self._num_rows, : self.num_keys].transpose(1, 2)

    def _store(self, stores: dict[int, Tensor], layer: int, like_NHD: Tensor) -> Tensor:
        """The layer's store, allocated when its first keys show their shape."""
        if layer not in stores:
            stores[layer] = allocate((self.num_slots, self.capacity, *like_NHD.shape[1:]), like_NHD)
        return stores[layer]

    def fill(self, slots: list[int], prefill: "PrefillCache", rows: list[int]) -> None:
        """Copy whole prefilled rows into slots; positions past a row's own length get padding, which stays masked."""
        for layer, (key_RHTD, value_RHTD) in prefill.layers.items():
            num_new = key_RHTD.shape[2]
            for stores, new_RHTD in ((self._keys, key_RHTD), (self._values, value_RHTD)):
                self._store(stores, layer, new_RHTD[:, :, 0])[slots, :num_new] = new_RHTD[rows].transpose(1, 2)

    def copy_of(self, slot: int, num_positions: int) -> "PrefillCache":
        """The first positions of a slot as one prefilled row, whatever becomes of the slot."""
        return self._rows(slice(slot, slot + 1), num_positions, torch.clone)

    def rows(self, num_positions: int) -> "PrefillCache":
        """The first positions of every slot as prefilled rows, sharing this cache's memory."""
        return self._rows(slice(None), num_positions, lambda store: store)

    def _rows(self, slots: slice, num_positions: int, keep: Callable[[Tensor], Tensor]) -> "PrefillCache":
        cache = PrefillCache()
        for layer, keys_SLHD in self._keys.items():
            key, value = (keep(store[slots, :num_positions]) for store in (keys_SLHD, self._values[layer]))
            cache.layers[layer] = (key.transpose(1, 2), value.transpose(1, 2))
        return cache

    def reserve(self, num_positions: int) -> None:
        """Make room for ``num_positions`` per slot; UserError when memory runs out."""
        if num_positions <= self.capacity:
            return
        capacity = -(-num_positions // _CHUNK) * _CHUNK
        for stores in (self._keys, self._values):
            for layer, old_SLHD in stores.items():
                new_SLHD = allocate((self.num_slots, capacity, *old_SLHD.shape[2:]), old_SLHD)
                new_SLHD[:, : self.capacity] = old_SLHD
                stores[layer] = new_SLHD
        self.capacity = capacity

    def move(self, source: int, target: int) -> None:
        """Overwrite slot ``target`` with slot ``source``."""
        for stores in (self._keys, self._values):
            for store in stores.values():
                store[target] = store[source]

    def clear(self, slot: int) -> None:
        """Zero a slot; needed after NaN, which a mask does not keep out of a weighted sum."""
        for stores in (self._keys, self._values):
            for store in stores.values():
                store[slot] = 0


def allocate(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of ``like``'s dtype and device; when memory runs out, a UserError that says which setting to lower."""
    try:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(
            f"out of memory while allocating {shape} of {like.dtype} for the engine's cache; "
            "lower max_rows (fewer rows at a time) or max_context (shorter rows)"
        ) from error


class PrefillCache:
    """Keeps what one prefill left in each layer, so that it can be copied into any number of slots.

    ``layers`` holds keys and values of attention layers, ``states`` the recurrent and convolution states of the others.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of keys, values and states."""
        pairs = (*self.layers.values(), *self.states.values())
        return sum(tensor.numel() * tensor.element_size() for pair in pairs for tensor in pair)

    def update(self, key_RHTD: Tensor, value_RHTD: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Remember and hand back: a prefill starts at position 0, so the new keys are all the keys."""
        self.layers[layer_idx] = (key_RHTD, value_RHTD)
        return key_RHTD, value_RHTD

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No position came before."""
        return 0
