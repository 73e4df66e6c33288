"""YAML as people expect it: ``1e-4`` is a number, ``on`` and ``no`` are words, a key written twice is an error.

PyYAML follows YAML 1.1, where ``1e-4`` is text and ``off`` is false. The loader and dumper here resolve scalars by the
core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/, section 10.3), so that what is dumped is read back unchanged.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from bebop.errors import UserError

_OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")

# tag, pattern, the characters such a scalar can begin with
_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads a class attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                problem = f"key {key_node.value!r} is written twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads a class attribute


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # YAML 1.2 has no octal by leading zero: 010 is ten.
    text = str(loader.construct_scalar(node))
    return int(text, 16) if text.startswith("0x") else int(text)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text with a line break that is not a line feed in double quotes: elsewhere YAML 1.1 folds it into a space."""
    style = '"' if _OTHER_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Dumper.add_representer(str, _represent_text)


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document; ``UserError`` naming ``name``, line and column where it is malformed."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}{where}: malformed YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: malformed YAML: {' '.join(str(error).split())}") from error


def dump_yaml(value: Any) -> str:
    """Block-style YAML in the order of the keys; ``parse_yaml`` gives an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Path of every key in a well-formed document -> its line, counted from 1."""
    root = yaml.compose(text, Loader=_Loader)
    return dict(_walk(root, ())) if root is not None else {}


def _walk(node: yaml.Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _walk(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = (*path, str(index))
            yield here, item.start_mark.line + 1
            yield from _walk(item, here)
