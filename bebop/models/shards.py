"""safetensors files read by header and written as a stream, so that tensors nobody changed are copied byte for byte.

A file is 8 bytes (little-endian header length), a JSON header, then the tensors' bytes without gaps. Reading only
headers is what lets a checkpoint of any size be checked, or given another head, without loading it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from bebop.errors import UserError

_CHUNK_BYTES = 16 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where one tensor's bytes lie: `file[start:end]`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The tensor, in its stored dtype, in memory of its own."""
        if self.start == self.end:
            return torch.empty(self.shape, dtype=TORCH_DTYPES[self.dtype])
        data = bytearray(self.end - self.start)
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            num_read = stream.readinto(data)
        assert num_read == len(data), f"{self.file} shrank while it was read"
        return torch.frombuffer(data, dtype=TORCH_DTYPES[self.dtype]).reshape(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The stored bytes, a few megabytes at a time."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.end - self.start
            while left > 0:
                chunk = stream.read(min(left, _CHUNK_BYTES))
                assert chunk, f"{self.file} shrank while it was read"
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTensor:
    """A tensor to be written: `source` is either the stored original or a tensor in memory of that dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: StoredTensor | Tensor

    @classmethod
    def unchanged(cls, stored: StoredTensor) -> PlannedTensor:
        return cls(name=stored.name, dtype=stored.dtype, shape=stored.shape, source=stored)

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> PlannedTensor:
        return cls(name=name, dtype=_CODES[tensor.dtype], shape=tuple(tensor.shape), source=tensor)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.source, StoredTensor):
            yield from self.source.chunks()
        else:
            flat = self.source.detach().to("cpu").contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardHeader:
    """The header of one safetensors file: its tensors in storage order, and its string metadata."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


def read_header(file: Path) -> ShardHeader:
    """Parses and checks a header; UserError naming the file where it is corrupt or the file is cut short."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _broken(file, "its header is incomplete")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        tensors = [_stored(file, name, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(file, "its header is not valid") from error
    tensors.sort(key=lambda tensor: tensor.start)
    _check_layout(file, tensors, begin=8 + length, size=size)
    return ShardHeader(tensors=tuple(tensors), metadata=metadata)


def _stored(file: Path, name: str, entry: Mapping[str, object], base: int) -> StoredTensor:
    start, end = (base + int(offset) for offset in entry["data_offsets"])  # type: ignore[union-attr]
    shape = tuple(int(size) for size in entry["shape"])  # type: ignore[union-attr]
    return StoredTensor(name=name, file=file, dtype=str(entry["dtype"]), shape=shape, start=start, end=end)


def _check_layout(file: Path, tensors: Sequence[StoredTensor], *, begin: int, size: int) -> None:
    position = begin
    for tensor in tensors:
        dtype = TORCH_DTYPES.get(tensor.dtype)
        if dtype is None:
            raise UserError(f"{file}: tensor {tensor.name} has dtype {tensor.dtype}, which Bebop cannot read.")
        expected = tensor.num_elements * dtype.itemsize
        if tensor.start != position or tensor.end - tensor.start != expected:
            raise _broken(file, f"the place of tensor {tensor.name} does not fit its shape")
        position = tensor.end
    if position != size:
        raise _broken(file, f"it has {size} bytes where its header promises {position}")


def _broken(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is corrupt or truncated ({reason}); copy or download it again.")


def write_shard(file: Path, planned: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, tensor by tensor, wider dtypes first (alignment), otherwise in the given order."""
    ordered = sorted(planned, key=lambda tensor: -TORCH_DTYPES[tensor.dtype].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in ordered:
        end = position + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little"))
        stream.write(raw)
        for tensor in ordered:
            _write_tensor(stream, tensor)


def _write_tensor(stream: BinaryIO, tensor: PlannedTensor) -> None:
    before = stream.tell()
    for chunk in tensor.chunks():
        stream.write(chunk)
    assert stream.tell() - before == tensor.num_bytes, f"tensor {tensor.name} has not the planned size"
