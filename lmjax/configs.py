"""Frozen dataclasses as trees of plain values: to and from JSON, changed by dotted keys, checked by type.

A member of a union of dataclasses is a dict with its class's name under "type". Types are checked by pydantic, one
field at a time, so that every message names its key.
"""

import ast
import dataclasses
import difflib
import functools
import re
import types
import typing
from typing import Any, Literal, Union

import pydantic

from lmjax.errors import UserError

TYPE = "type"


def to_tree(value) -> Any:
    """A dataclass as nested dicts and lists of plain values."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TYPE: type(value).__name__} | fields
    if isinstance(value, (list, tuple)):
        return [to_tree(item) for item in value]
    return value


def from_tree(kind, tree, key: str = "") -> Any:
    """The value of this type that `to_tree` gave. Raises UserError that names the dotted key."""
    members = _members(kind)
    if members and not (tree is None and _takes_none(kind)):
        return _from_dict(members, tree, key)
    if typing.get_origin(kind) is tuple and _members(typing.get_args(kind)[0]):
        if not isinstance(tree, list):
            raise UserError(f"{key}: expected a list, not {tree!r}")
        return tuple(from_tree(typing.get_args(kind)[0], item, f"{key}.{i}") for i, item in enumerate(tree))
    return _leaf(kind, tree, key)


def apply(kind, tree: dict, key: str, text: str) -> None:
    """Change the tree at a dotted key to what the text says; a union takes its member's name, with that member's
    defaults. Raises UserError for a key that is not there, and names the nearest."""
    *path, last = key.split(".")
    done = []
    for name in path:
        kind, tree = _descend(kind, tree, name, done, key)
        done.append(name)
    field_kind = _field(kind, tree, last, done, key)
    members = _members(field_kind)
    if not members:
        tree[_index(tree, last)] = _parse(field_kind, text, key)
    elif text in members:
        # the old member's fields go with it
        tree[_index(tree, last)] = {TYPE: text}
    elif text.lower() in ("none", "null") and _takes_none(field_kind):
        tree[_index(tree, last)] = None
    else:
        raise UserError(f"{key}: {text!r} is not one of {' | '.join(members)}{_nearest(text, members)}")


def differences(old: dict, new: dict, key: str = "") -> list[str]:
    """Lines such as "optimizer.b2: 0.95 -> 0.99" for every leaf in which two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get(TYPE) == new.get(TYPE):
        lines = []
        for name in list(old) + [name for name in new if name not in old]:
            where = f"{key}.{name}" if key else name
            lines += differences(old.get(name), new.get(name), where)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i in range(len(old)) for line in differences(old[i], new[i], f"{key}.{i}")]
    return [] if old == new else [f"{key}: {_short(old)} -> {_short(new)}"]


def flat(tree, key: str = "") -> dict[str, str]:
    """Every leaf of a tree by its dotted key, as text."""
    if not isinstance(tree, (dict, list)):
        return {key: repr(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {name: leaf for k, item in items for name, leaf in flat(item, f"{key}.{k}" if key else str(k)).items()}


def _short(tree) -> str:
    if isinstance(tree, dict):
        rest = ", ".join(f"{name}={_short(value)}" for name, value in tree.items() if name != TYPE)
        return f"{tree[TYPE]}({rest})"
    return repr(tree)


@functools.cache
def _hints(kind) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _members(kind) -> dict[str, type]:
    """The dataclasses of a union by name; of a dataclass itself, just that one."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    return {option.__name__: option for option in options if dataclasses.is_dataclass(option)}


def _takes_none(kind) -> bool:
    return type(None) in typing.get_args(kind)


def _from_dict(members: dict[str, type], tree, key: str):
    where = f"{key}: " if key else ""
    if not isinstance(tree, dict) or tree.get(TYPE, next(iter(members)) if len(members) == 1 else None) not in members:
        found = tree.get(TYPE) if isinstance(tree, dict) else tree
        raise UserError(f"{where}expected {' | '.join(members)}, not {found!r}")
    member = members[tree.get(TYPE, next(iter(members)))]
    fields = {f.name: f for f in dataclasses.fields(member)}
    values = {}
    for name, item in tree.items():
        if name == TYPE:
            continue
        if name not in fields:
            raise UserError(f"{where}{member.__name__} has no {name!r}{_nearest(name, fields)}")
        values[name] = from_tree(_hints(member)[name], item, f"{key}.{name}" if key else name)
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise UserError(f"{key + '.' if key else ''}{name}: {member.__name__} needs a value")
    try:
        return member(**values)
    except ValueError as error:
        raise UserError(f"{where}{error}") from None


def _descend(kind, tree, name: str, done: list[str], key: str):
    """The type and the tree of one field on the way to a key."""
    field_kind = _field(kind, tree, name, done, key)
    child = tree[_index(tree, name)] if isinstance(tree, list) or name in tree else None
    if isinstance(child, list):
        return field_kind, child
    members = _members(field_kind)
    if child is None and members and name not in tree:
        # a member named just before, of which only the name is known yet
        child = tree[name] = _defaults(_members(kind)[tree[TYPE]], name, key)
    if not isinstance(child, dict):
        raise UserError(f"--{key}: {'.'.join([*done, name])} has no parts")
    return members[child[TYPE]], child


def _defaults(member: type, name: str, key: str) -> dict:
    field = {f.name: f for f in dataclasses.fields(member)}[name]
    if field.default is dataclasses.MISSING:
        raise UserError(f"--{key}: {name} has no value yet")
    return to_tree(field.default)


def _index(tree, name: str):
    return int(name) if isinstance(tree, list) else name


def _field(kind, tree, name: str, done: list[str], key: str):
    """The type of the field `name` of a tree."""
    if isinstance(tree, list):
        if not re.fullmatch("[0-9]{1,9}", name) or int(name) >= len(tree):
            raise UserError(f"--{key}: {'.'.join(done)} has the parts 0 to {len(tree) - 1}, not {name!r}")
        return typing.get_args(kind)[0]
    member = _members(kind)[tree[TYPE]]
    names = [f.name for f in dataclasses.fields(member)]
    if name not in names:
        owner = ".".join(done) or "an experiment"
        raise UserError(f"--{key}: {owner} has no {name!r}{_nearest(name, names)}")
    return _hints(member)[name]


def _nearest(name: str, names) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"


def _parse(kind, text: str, key: str):
    """The value that a text on the command line stands for, in a field of this type."""
    candidates = [text]
    try:
        literal = {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)
        candidates.insert(0, ast.literal_eval(text) if literal is text else literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as ast.literal_eval says
        pass
    value = candidates[0]
    if isinstance(value, float) and value.is_integer() and not _accepts(kind, value):
        candidates.insert(0, int(value))  # 1e5 steps
    if isinstance(value, tuple):
        candidates.insert(0, list(value))
    if typing.get_origin(kind) is tuple:
        candidates.append(text.split(","))  # of texts: without quotes and brackets
    for candidate in candidates:
        if _accepts(kind, candidate):
            return candidate
    return _leaf(kind, text, f"--{key}")


@functools.cache
def _adapter(kind) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind)


def _as_python(value):
    return tuple(value) if isinstance(value, list) else value


def _accepts(kind, value) -> bool:
    try:
        _adapter(kind).validate_python(_as_python(value), strict=True)
    except pydantic.ValidationError:
        return False
    return True


def _leaf(kind, value, key: str):
    try:
        return _adapter(kind).validate_python(_as_python(value), strict=True)
    except pydantic.ValidationError:
        raise UserError(f"{key}: expected {_describe(kind)}, not {value!r}") from None


def _describe(kind) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a list of: {_describe(typing.get_args(kind)[0])}"
    return " or ".join(_describe(option) for option in typing.get_args(kind))
