"""`bebop.json`, the note beside `config.json`: a head's wiring, the backbone it was trained on, what it may draft."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from bebop.errors import UserError
from bebop.models.checkpoint import read_json, write_json
from bebop.models.contracts import HeadContract, HeadOptions

HEAD_RECORD_FILE = "bebop.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRecord:
    """What a head remembers: its contract, the options as chosen, the fingerprint of the backbone it was trained on,
    and the tokens it may draft (None = all)."""

    contract: str
    options: HeadOptions
    trained_on: str | None = None
    draft_vocabulary: tuple[int, ...] | None = None


def read_head_record(directory: Path, contract: HeadContract, vocab_size: int) -> HeadRecord | None:
    """The record in `directory`, None where there is none; UserError where it belongs to another architecture."""
    file = directory / HEAD_RECORD_FILE
    if not file.is_file():
        return None
    content = read_json(file)
    options = content.get("options", {})
    known = {field.name for field in fields(HeadOptions)}
    if not isinstance(options, dict) or not set(options) <= known:
        raise UserError(f"{file}: options must be among {', '.join(sorted(known))}; restore the file or delete it.")
    if content.get("contract") != contract.name:
        raise UserError(
            f"{file} speaks of a {content.get('contract')} head but the backbone takes a {contract.name} head; "
            "stitch a head of the same architecture."
        )
    return HeadRecord(
        contract=contract.name,
        options=HeadOptions(**options),
        trained_on=content.get("head_trained_on"),
        draft_vocabulary=_checked_vocabulary(content.get("draft_vocabulary"), vocab_size, file),
    )


def write_head_record(directory: Path, contract: HeadContract, record: HeadRecord) -> None:
    """Into a checkpoint, and into its draft directory where it has one, so that this can be stitched on its own."""
    content: dict[str, Any] = {
        "contract": record.contract,
        "options": asdict(record.options),
        "head_trained_on": record.trained_on,
    }
    if record.draft_vocabulary is not None:
        content["draft_vocabulary"] = list(record.draft_vocabulary)
    write_json(directory / HEAD_RECORD_FILE, content)
    if contract.subdirectory and (directory / contract.subdirectory).is_dir():
        write_json(directory / contract.subdirectory / HEAD_RECORD_FILE, content)


def _checked_vocabulary(stored: Any, vocab_size: int, file: Path) -> tuple[int, ...] | None:
    if stored is None:
        return None
    is_list = isinstance(stored, list) and stored and all(type(token) is int for token in stored)
    if not is_list or stored[0] < 0 or stored[-1] >= vocab_size or any(a >= b for a, b in pairwise(stored)):
        raise UserError(
            f"{file}: draft_vocabulary must be token ids below {vocab_size} in rising order; take it out, and make "
            "it again with `bebop policy vocabulary`."
        )
    return tuple(stored)
