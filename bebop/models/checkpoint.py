"""A safetensors checkpoint directory as a table of tensors: opened by headers alone, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bebop.errors import UserError
from bebop.models.shards import PlannedTensor, StoredTensor, read_header, write_shard

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_CARRIED_DIRECTORIES = ("additional_chat_templates",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The tensors of a directory by name, the shard files in order, and the shards' metadata."""

    directory: Path
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]
    metadata: Mapping[str, Mapping[str, str]]
    indexed: bool

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Reads every shard's header; UserError where a file is missing, broken, or at odds with the index."""
        index = directory / INDEX_FILE
        single = directory / SINGLE_FILE
        if index.is_file():
            weight_map = _read_weight_map(index)
            shards = tuple(sorted(set(weight_map.values())))
        elif single.is_file():
            weight_map, shards = {}, (SINGLE_FILE,)
        else:
            raise UserError(f"{directory} holds no {SINGLE_FILE} and no {INDEX_FILE}; Bebop reads safetensors only.")
        tensors: dict[str, StoredTensor] = {}
        metadata: dict[str, Mapping[str, str]] = {}
        for shard in shards:
            if not (directory / shard).is_file():
                raise UserError(f"{directory / shard} is missing though {INDEX_FILE} lists it; copy it again.")
            header = read_header(directory / shard)
            metadata[shard] = header.metadata
            tensors.update({tensor.name: tensor for tensor in header.tensors})
        if index.is_file():
            _check_index(index, weight_map, tensors)
        return cls(directory=directory, tensors=tensors, shards=shards, metadata=metadata, indexed=index.is_file())

    def names_under(self, prefix: str) -> list[str]:
        return [name for name in self.tensors if name.startswith(prefix)]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError naming the file where it is absent or malformed."""
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}; name the directory of a checkpoint.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); restore it from the original.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; restore it from the original.")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; restore it from the original.")
    return weight_map


def _check_index(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise UserError(f"{index} places {name} in {shard}, where it is not; restore index and shards together.")
    unlisted = sorted(set(tensors) - set(weight_map))
    if unlisted:
        raise UserError(
            f"{index} does not list {unlisted[0]} (and {len(unlisted) - 1} more) of its shards; rebuild it."
        )


def write_checkpoint(
    base: Checkpoint, changed: Mapping[str, PlannedTensor], dropped: frozenset[str], out: Path, *, link: bool = False
) -> None:
    """Writes base's shards into `out`, with `changed` replaced or added and `dropped` left out, and the index.

    A shard without changes is copied whole (or hard-linked: `link`). Added tensors go into the single file where
    there is one, into a shard of their own, `model-mtp.safetensors`, where there is an index.
    """
    added = [tensor for name, tensor in changed.items() if name not in base.tensors]
    contents: dict[str, list[PlannedTensor]] = {shard: [] for shard in base.shards}
    for name, stored in base.tensors.items():
        if name not in dropped:
            contents[stored.file.name].append(changed.get(name, PlannedTensor.unchanged(stored)))
    if added:
        home = "model-mtp.safetensors" if base.indexed else base.shards[0]
        contents.setdefault(home, []).extend(added)
    contents = {shard: planned for shard, planned in contents.items() if planned}
    for shard, planned in contents.items():
        originals = [stored for stored in base.tensors.values() if stored.file.name == shard]
        if len(planned) == len(originals) and all(p.source is o for p, o in zip(planned, originals, strict=True)):
            _place(base.directory / shard, out / shard, link=link)
        else:
            write_shard(out / shard, planned, base.metadata.get(shard, {"format": "pt"}))
    if base.indexed:
        _write_index(base, contents, out)


def _write_index(base: Checkpoint, contents: Mapping[str, list[PlannedTensor]], out: Path) -> None:
    index = read_json(base.directory / INDEX_FILE)
    index["weight_map"] = {tensor.name: shard for shard, planned in contents.items() for tensor in planned}
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(tensor.num_bytes for planned in contents.values() for tensor in planned)
    index["metadata"] = metadata
    write_json(out / INDEX_FILE, index)


def copy_side_files(source: Path, out: Path) -> None:
    """Everything beside the weights: config, tokenizer, generation config, chat templates, licence, model card."""
    for item in sorted(source.iterdir()):
        if item.name in _CARRIED_DIRECTORIES and item.is_dir():
            shutil.copytree(item, out / item.name)
        elif item.is_file() and item.suffix not in _WEIGHT_SUFFIXES and not item.name.endswith(INDEX_FILE):
            _place(item, out / item.name, link=False)


def _place(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links: a copy serves as well
            target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory beside `path` that becomes `path` on success and vanishes on failure.

    An earlier checkpoint at `path` is replaced in the same instant; anything else there is a UserError.
    """
    path = path.absolute()
    if path.exists() and not _is_replaceable(path):
        raise UserError(f"{path} exists and is no checkpoint; choose another place to write to.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    previous = path.with_name(f".{path.name}.previous-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(previous)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if previous.exists() and not path.exists():
            previous.rename(path)
        shutil.rmtree(previous, ignore_errors=True)


def _is_replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / CONFIG_FILE).is_file() or not any(path.iterdir()))
