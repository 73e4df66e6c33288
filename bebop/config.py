"""Configurations: frozen pydantic models, read from YAML plus dotted overrides; wrong keys are refused by name.

``load_config(Model, path, ["train.lr=1e-4"])`` gives a ``Model`` or raises a ``UserError`` of one sentence that says
where (file and line, or override), which key, and what is nearest right. ``to_yaml`` writes what ``load_config`` reads.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bebop.config_errors import KeyOrigins, explain
from bebop.config_yaml import dump_yaml, key_lines, parse_yaml
from bebop.errors import UserError


class ConfigModel(BaseModel):
    """Base of every configuration: immutable, no unknown keys, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_partial_sections(cls, raw: Any) -> Any:
        """Fill a partly written section from the field's default instance, not from its class's own defaults."""
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True, validated_data={})
            given = raw.get(name)
            if isinstance(default, ConfigModel) and isinstance(given, Mapping):
                section = type(default)
                if field.annotation in (section, section | None):
                    filled[name] = _merged(default.model_dump(exclude_unset=True), given)
        return filled


Model = TypeVar("Model", bound=ConfigModel)


def load_config(model: type[Model], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Model:
    """Build ``model`` from the YAML file at ``path`` (None: defaults alone), changed by ``overrides`` in their order.

    Raises ``UserError`` for a missing or malformed file, an unknown key, a wrong type or a value out of range.
    """
    text = _read(Path(path)) if path is not None else ""
    name = str(path) if path is not None else "the configuration"
    raw = parse_yaml(text, name)
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{name}: a config is a mapping of keys to values, not a {type(raw).__name__}")
    origins = KeyOrigins(file=name, lines=key_lines(text), overrides={})
    for override in overrides:
        origins.overrides[_apply(raw, override)] = override
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, model, origins)) from error


def to_yaml(config: ConfigModel) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back to an equal object."""
    return dump_yaml(config.model_dump(mode="json"))


def different_settings(before: ConfigModel, after: ConfigModel, may_differ: Collection[str] = ()) -> list[str]:
    """Settings whose values differ, as ``lr 0.1, now 0.2``, but for those named in ``may_differ``.

    Names are dotted; the name of a section stands for all that is in it.
    """
    values = [_flat(one.model_dump(mode="json", by_alias=True)) for one in (before, after)]
    names = [name for name in values[0] | values[1] if not any(f"{name}.".startswith(f"{one}.") for one in may_differ)]
    was, now = ({name: one.get(name, "not set") for name in names} for one in values)
    return [f"{name} {was[name]}, now {now[name]}" for name in names if was[name] != now[name]]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in section.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"there is no config file {path}; give the path of a YAML file, such as one under configs/")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8 (byte {error.start}); save it as UTF-8") from error


def _apply(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one ``dotted.key=value`` in ``raw`` and return the key's path."""
    dotted, equals, value = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"override {override!r} is not of the form key=value, such as train.lr=1e-4")
    section = raw
    for depth, key in enumerate(keys[:-1], start=1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            here = ".".join(keys[:depth])
            raise UserError(f"override {override!r}: {here} is not a section; set it as a whole, {here}=VALUE")
    section[keys[-1]] = parse_yaml(value, f"override {override!r}")
    return keys


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
