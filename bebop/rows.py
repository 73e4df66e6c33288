"""Rows of a file: JSONL, Parquet, or a directory that `datasets` saved; each with a name to say where it stands, and
in an order of its own in every epoch."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from bebop.errors import UserError


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row; UserError naming what cannot be read."""
    if not path.exists():
        raise UserError(f"there is no file {path}; give a JSONL or Parquet file, or a directory saved by `datasets`")
    if path.is_dir():
        return read_directory(path)
    return read_parquet(path) if path.suffix == ".parquet" else read_lines(path)


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", parse_line(line, f"{path}:{number}")


def parse_line(line: bytes, where: str) -> Any:
    text = decoded(line, where)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); write one row a line") from error


def read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    require("pyarrow", path)
    import pyarrow.parquet as parquet
    from pyarrow import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({error}); write it again") from error
    number = 0
    for group in file.iter_batches():
        for row in group.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def read_directory(path: Path) -> Iterator[tuple[str, Any]]:
    require("datasets", path)
    import datasets  # pyright: ignore[reportMissingImports]

    try:
        loaded = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a data set that `datasets` saved; name such a directory, or a file") from error
    if not isinstance(loaded, datasets.Dataset):
        raise UserError(f"{path} holds several splits; name the directory of one, such as {path / 'train'}")
    for number, row in enumerate(loaded, start=1):
        yield f"{path}, row {number}", row


def require(package: str, path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"reading {path} needs {package}; run `pip install 'bebop-rl[data]'` or give a JSONL file")


@lru_cache(maxsize=8)
def shuffled(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of ``count`` rows in an epoch."""
    order = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)


def decoded(line: bytes, where: str) -> str:
    """A line of a file; UserError naming the one that is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start} of the line); save the file as UTF-8") from error
