"""Keys and values of rows that have different lengths.

Legend: S slots (rows the engine can hold), B rows in use (always the first B slots), L positions a slot can hold,
T new positions of a row, N = B T, H key heads, D head size, R rows of a prefill, X keys and values of each layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bebop.errors import UserError

_CHUNK = 256
"""Positions by which slots grow: a reallocation per 256 tokens, at most 256 unused positions per slot."""


class SlotCache:
    """Keys and values of every layer in one store [X, S, L, H, D], written at each row's own positions.

    It takes the place of transformers' cache: layers call ``update``. The positions come from ``begin`` (once per
    forward, not per layer). What lies behind a row's length is stale and must be masked by the caller, so dropping
    rejected drafts costs nothing: the row's length is simply not advanced past them. One store for all layers makes
    what is done to whole rows (filling, moving, keeping) one copy instead of two per layer.
    """

    def __init__(self, num_slots: int, layers: Sequence[int] = (0,), chunk: int = _CHUNK) -> None:
        """``layers``: which ones will write, in the order they run. ``chunk``: positions by which slots grow."""
        self.num_slots = num_slots
        self.layers = tuple(layers)
        self.capacity = 0
        self.num_keys = 0
        """Positions that the forward begun last reads."""
        self._chunk = chunk
        self._store_XSLHD: Tensor | None = None
        """None until the first keys show their shape."""
        self._by_layer: dict[int, tuple[Tensor, Tensor]] = {}
        """The layers' keys and values [S, L, H, D] in the store."""
        self._flat_N = torch.empty(0, dtype=torch.long)
        self._num_rows = 0

    @property
    def num_bytes(self) -> int:
        """Memory of the store."""
        return 0 if self._store_XSLHD is None else _num_bytes(self._store_XSLHD)

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
        self._open(key_NHD)
        keys_SLHD, values_SLHD = self._by_layer[layer]
        return self._write(keys_SLHD, key_NHD), self._write(values_SLHD, value_NHD)

    def _write(self, layer_SLHD: Tensor, new_NHD: Tensor) -> Tensor:
        layer_SLHD.flatten(0, 1).index_copy_(0, self._flat_N, new_NHD)
        return layer_SLHD[: self._num_rows, : self.num_keys].transpose(1, 2)

    def fill(self, slots: Sequence[int], prefill: "PrefillCache", rows: Sequence[int]) -> None:
        """Copy whole prefilled rows into slots; positions past a row's own length get padding, which stays masked."""
        new_XRTHD = prefill.attention_XRTHD
        if new_XRTHD is None:
            return
        store_XSLHD = self._open(new_XRTHD)
        for slot, row in zip(slots, rows, strict=True):
            store_XSLHD[:, slot, : new_XRTHD.shape[2]] = new_XRTHD[:, row]

    def copy_of(self, slot: int, num_positions: int) -> "PrefillCache":
        """The first positions of a slot as one prefilled row, whatever becomes of the slot."""
        store_XSLHD = self._store_XSLHD
        return PrefillCache(None if store_XSLHD is None else store_XSLHD[:, slot : slot + 1, :num_positions].clone())

    def rows(self, num_positions: int) -> "PrefillCache":
        """The first positions of every slot as prefilled rows, sharing this cache's memory."""
        return PrefillCache(None if self._store_XSLHD is None else self._store_XSLHD[:, :, :num_positions])

    def reserve(self, num_positions: int) -> None:
        """Make room for ``num_positions`` per slot; UserError when memory runs out. Growing needs both stores."""
        if num_positions <= self.capacity:
            return
        old_XSLHD, old_capacity = self._store_XSLHD, self.capacity
        self.capacity = -(-num_positions // self._chunk) * self._chunk
        if old_XSLHD is not None:
            self._store_XSLHD = None
            self._open(old_XSLHD)[:, :, :old_capacity] = old_XSLHD

    def move(self, source: int, target: int) -> None:
        """Overwrite slot ``target`` with slot ``source``."""
        if self._store_XSLHD is not None:
            self._store_XSLHD[:, target] = self._store_XSLHD[:, source]

    def clear(self, slot: int) -> None:
        """Zero a slot; needed after NaN, which a mask does not keep out of a weighted sum."""
        if self._store_XSLHD is not None:
            self._store_XSLHD[:, slot] = 0

    def _open(self, like: Tensor) -> Tensor:
        """The store, allocated for heads like these ([..., H, D]) where there is none yet."""
        if self._store_XSLHD is None:
            shape = (2 * len(self.layers), self.num_slots, self.capacity, *like.shape[-2:])
            self._store_XSLHD = allocate(shape, like)
            pairs = self._store_XSLHD.unflatten(0, (-1, 2)).unbind(0)
            self._by_layer = {layer: (pair[0], pair[1]) for layer, pair in zip(self.layers, pairs, strict=True)}
        return self._store_XSLHD


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

    ``states`` are the recurrent and convolution states of the layers without attention.
    """

    def __init__(self, attention_XRTHD: Tensor | None = None) -> None:
        self.states: dict[int, tuple[Tensor, Tensor]] = {}
        self._attention_XRTHD = attention_XRTHD
        self._written: list[Tensor] = []
        """Keys and values [R, T, H, D] of the layers that have run, in turn."""

    @property
    def attention_XRTHD(self) -> Tensor | None:
        """Keys and values of the attention layers, as a ``SlotCache`` has them; None where there are no such layers."""
        if self._written:
            self._attention_XRTHD = torch.stack(self._written)
            self._written = []
        return self._attention_XRTHD

    @property
    def num_bytes(self) -> int:
        """Memory of keys, values and states."""
        attention_XRTHD = self.attention_XRTHD
        states = sum(_num_bytes(tensor) for pair in self.states.values() for tensor in pair)
        return states + (0 if attention_XRTHD is None else _num_bytes(attention_XRTHD))

    def update(self, key_RHTD: Tensor, value_RHTD: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Remember and hand back: a prefill starts at position 0, so the new keys are all the keys."""
        del layer_idx  # layers run in order, each once
        self._written += [key_RHTD.transpose(1, 2), value_RHTD.transpose(1, 2)]
        return key_RHTD, value_RHTD

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No position came before."""
        return 0


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
