"""Options as text: commands, dotted overrides, YAML and TOML."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from bebop.recipes.record import Block

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def shell(
    title: str, words: Sequence[str], options: Mapping[str, Any], *, prefix: str = "--", dash: str = "-"
) -> Block:
    """A command with one option a line. True is a bare flag; mappings are written as JSON."""
    lines = [shlex.join(words)]
    for name, value in options.items():
        flag = prefix + name.replace("_", dash)
        lines.append(flag if value is True else f"{flag} {shlex.quote(_argument(value))}")
    return Block(
        title=title, form="shell", data={"command": list(words), "options": dict(options)}, text=" \\\n  ".join(lines)
    )


def overrides(title: str, options: Mapping[str, Any], *, added: Mapping[str, Any] | None = None) -> Block:
    """Dotted ``key=value`` words; those of ``added`` get Hydra's ``+``, for keys that its schema does not have."""
    data = {**options, **{f"+{key}": value for key, value in (added or {}).items()}}
    lines = [shlex.quote(f"{key}={_override(value)}") for key, value in data.items()]
    return Block(title=title, form="overrides", data=data, text=" \\\n".join(lines))


def as_yaml(title: str, data: Mapping[str, Any]) -> Block:
    text = yaml.safe_dump(dict(data), sort_keys=False, default_flow_style=False).rstrip()
    return Block(title=title, form="yaml", data=dict(data), text=text)


def as_toml(title: str, data: Mapping[str, Any]) -> Block:
    """Tables of plain values and inline tables."""
    lines: list[str] = []
    for table, values in data.items():
        lines += [f"[{table}]", *(f"{_key(name)} = {_toml(value)}" for name, value in values.items())]
    nested: dict[str, Any] = {}
    for table, values in data.items():
        place = nested
        for part in table.split("."):
            place = place.setdefault(part, {})
        place.update(values)
    return Block(title=title, form="toml", data=nested, text="\n".join(lines))


def dotted(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``{prefix.key: value}``, nested mappings flattened."""
    return dict(_flatten(prefix, options))


def _flatten(prefix: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


def _argument(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping | list) else str(value)


def _override(value: Any) -> str:
    """As OmegaConf reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_override(one)}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _toml(value: Any) -> str:
    """JSON's strings, numbers and booleans are TOML's too."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)
