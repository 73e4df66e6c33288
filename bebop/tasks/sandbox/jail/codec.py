"""Python values as JSON text, so that what leaves the sandbox is data, never code or objects with manners of their own.

JSON's own values stand for themselves; ``{"tuple": [...]}``, ``{"set": [...]}`` and ``{"dict": [[key, value], ...]}``
for the rest. A subclass (``Counter``, ``namedtuple``, ``IntEnum``) arrives as its base.
"""

import json


def encode(value):
    """``value`` as a tree that ``json`` writes. TypeError for a value that is not data."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot leave the sandbox")


def decode(tree):
    """The inverse of ``encode``. ValueError or TypeError for a tree that ``encode`` does not make."""
    if isinstance(tree, list):
        return [decode(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) != 1:
        raise ValueError("not a tagged value")
    ((tag, items),) = tree.items()
    if tag == "dict":
        return {decode(key): decode(item) for key, item in items}
    if tag == "tuple":
        return tuple(decode(item) for item in items)
    if tag == "set":
        return {decode(item) for item in items}
    raise ValueError(f"unknown tag {tag!r}")


def dumps(value) -> str:
    return json.dumps(encode(value))


def loads(text: str):
    return decode(json.loads(text))
