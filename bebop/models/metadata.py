"""`bebop.json`, the note beside `config.json`: which wiring a head was trained with, and on which backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bebop.errors import UserError
from bebop.models.checkpoint import read_json, write_json
from bebop.models.contracts import HeadContract, HeadOptions

HEAD_RECORD_FILE = "bebop.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRecord:
    """What a head remembers: its contract, the options as chosen, the fingerprint of the backbone it was trained on."""

    contract: str
    options: HeadOptions
    trained_on: str | None = None


def read_head_record(directory: Path, contract: HeadContract) -> HeadRecord | None:
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
    trained_on = content.get("head_trained_on")
    return HeadRecord(contract=contract.name, options=HeadOptions(**options), trained_on=trained_on)


def write_head_record(directory: Path, record: HeadRecord) -> None:
    content = {"contract": record.contract, "options": asdict(record.options), "head_trained_on": record.trained_on}
    write_json(directory / HEAD_RECORD_FILE, content)
