"""Values to bytes. A plain document takes two C-speed passes, anything else a walk in Python."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from agent_sessions.codec import registry
from agent_sessions.codec.leaves import WRITERS, Code, write_int
from agent_sessions.codec.shapes import UnstorableError, is_registrable
from agent_sessions.errors import CommitTooLargeError, SerializationError

MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
"""The largest encoded value, on every store."""

MAX_DEPTH: Final = 128
"""The deepest nesting of containers and objects: `[]` is 1 deep."""

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN: Final = _SCALARS | {list, dict}
_STR_ONLY: Final = frozenset({str})
_SEARCH_NODES: Final = 100_000
_MAX_PATH_IN_MESSAGE: Final = 200
_SHOWN_KEY_BITS: Final = 64

_encode: Final = msgspec.msgpack.Encoder().encode


def encode(value: object, *, root: str = "value") -> bytes:
    """The bytes of a value.

    Args:
        value: What is to be stored; see `agent_sessions.codec` for the types.
        root: What paths in errors start with: the value's name.

    Raises:
        SerializationError: Something in the value can't be stored exactly, is nested more than `MAX_DEPTH` deep or
            contains itself. `field` is the path to it, like `cart[2].when` or `cart["odd key"][0]`; `[*]` is an
            element of a set.
        CommitTooLargeError: The value takes more than `MAX_VALUE_BYTES`.
    """
    try:
        data = _encode_exactly(value)
    except _Refusal as refusal:
        path = root + "".join(reversed(refusal.path))
        shown = path if len(path) <= _MAX_PATH_IN_MESSAGE else f"{path[:120]} ... {path[-60:]}"
        raise SerializationError(f"{shown} {refusal.reason}.", field=path) from None
    except _TooLargeError as error:
        raise _too_large(root, f"more than {error.at_least:,}") from None
    except RecursionError:
        raise SerializationError(
            f"{root} could not be encoded: the call stack is nearly full here. Call from a shallower place.", field=root
        ) from None
    except Exception as error:
        raise SerializationError(
            f"{root} could not be encoded: {type(error).__name__}. Was it changed meanwhile, by another thread?",
            field=root,
        ) from error
    if len(data) > MAX_VALUE_BYTES:
        raise _too_large(root, f"{len(data):,}")
    return data


def encode_unchecked(items: list[Any]) -> bytes:
    """The bytes of a list in one C call, for a comparison: if the items are plain, they end with what `encode` gives.

    Types are not checked (a tuple looks like a list here), nor is the size. What can't be encoded gives `b""`.
    """
    try:
        return _encode(items)
    except Exception:
        return b""


def list_header(count: int) -> bytes:
    """What a list of so many items begins with: MessagePack's fixarray, array 16 or array 32."""
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big") if count < 2**16 else b"\xdd" + count.to_bytes(4, "big")


def is_immutable(value: object) -> bool:
    """Whether nothing reachable from a decoded value can be changed in place."""
    try:
        return _is_immutable(value)
    except RecursionError:
        return False


_IMMUTABLE: Final = _SCALARS | {datetime, date, time, timedelta, Decimal, UUID}


def _is_immutable(value: object) -> bool:
    kind = type(value)
    if kind in _IMMUTABLE or isinstance(value, Enum):
        return True
    if kind is tuple or kind is frozenset:
        return all(map(_is_immutable, value))  # type: ignore[call-overload]
    known = registry.by_class.get(kind)
    return known is not None and known.shape.frozen and all(map(_is_immutable, known.shape.take(value).values()))


def _encode_exactly(value: object) -> bytes:
    try:
        if type(value) in _SCALARS or _is_flat(value) or _is_plain(value):
            return _encode(value)
        return _encode(_Walk().lower(value, 0))
    except _TooLargeError:
        with suppress(_TooLargeError):  # the reason may be that it contains itself
            _Walk(nodes=_SEARCH_NODES).lower(value, 0)
        raise
    except (OverflowError, ValueError):  # an integer beyond 64 bit, a lone surrogate, 4 GiB of text
        return _encode(_Walk(check_scalars=True).lower(value, 0))


def _is_flat(value: object) -> bool:
    """Whether this is a dict of scalars: the commonest small value."""
    return type(value) is dict and set(map(type, value)) <= _STR_ONLY and set(map(type, value.values())) <= _SCALARS


def _is_plain(value: object) -> bool:
    """Whether there are only plain types down to `MAX_DEPTH`, level by level: each pass over a level is one C loop.

    Raises:
        _TooLargeError: There are more nodes than a value may have bytes (which also ends a value that contains itself).
    """
    level: list[Any] = [value]
    nodes = 0
    for _ in range(MAX_DEPTH):
        kinds = set(map(type, level))
        if not kinds <= _PLAIN:
            return False
        children: list[Any] = []
        if dict in kinds:
            dicts = level if len(kinds) == 1 else [item for item in level if type(item) is dict]
            nodes += sum(map(len, dicts))
            if nodes > MAX_VALUE_BYTES:
                raise _TooLargeError(nodes)
            if not set(map(type, chain.from_iterable(dicts))) <= _STR_ONLY:
                return False
            children.extend(chain.from_iterable(map(dict.values, dicts)))
        if list in kinds:
            lists = level if len(kinds) == 1 else [item for item in level if type(item) is list]
            nodes += sum(map(len, lists))
            if nodes > MAX_VALUE_BYTES:
                raise _TooLargeError(nodes)
            children.extend(chain.from_iterable(lists))
        if not children:
            return True
        level = children
    return set(map(type, level)) <= _SCALARS


class _Refusal(Exception):
    """Something that can't be stored; the path to it is gathered on the way up, innermost first."""

    def __init__(self, reason: str, *path: str) -> None:
        self.reason = reason
        self.path = list(path)


class _TooLargeError(Exception):
    def __init__(self, at_least: int) -> None:
        self.at_least = at_least


class _Walk:
    """Turns a value into one that msgspec encodes exactly: what MessagePack does not know becomes an extension.

    Args:
        check_scalars: Also look at each integer and text: needed only if msgspec has refused one.
        nodes: How many nodes to visit at most.
    """

    def __init__(self, *, check_scalars: bool = False, nodes: int = MAX_VALUE_BYTES) -> None:
        self._check_scalars = check_scalars
        self._nodes_left = self._nodes = nodes
        self._open: set[int] = set()

    def lower(self, value: Any, depth: int) -> object:
        kind = type(value)
        if kind in _SCALARS:
            return _lower_scalar(value) if self._check_scalars else value
        if kind in WRITERS:
            return _lower_leaf(value)
        if kind not in _CONTAINERS and kind not in registry.by_class:
            raise _Refusal(_why_not(value))
        if depth >= MAX_DEPTH:
            raise _Refusal(f"is nested more than {MAX_DEPTH} deep. Store it flatter, or as several values")
        if id(value) in self._open:
            raise _Refusal("contains itself, which can't be stored. Store a name or an index instead")
        self._open.add(id(value))
        lowered = self._container(value, kind, depth + 1)
        self._open.discard(id(value))
        return lowered

    def _container(self, value: Any, kind: type, depth: int) -> object:
        if kind is dict:
            return self._dict(value, depth)
        if kind is list:
            return self._items(value, depth)
        if kind is tuple:
            return Ext(Code.TUPLE, _encode(self._items(value, depth)))
        if kind is set:
            return Ext(Code.SET, self._elements(value, depth))
        if kind is frozenset:
            return Ext(Code.FROZENSET, self._elements(value, depth))
        return self._object(value, registry.by_class[kind], depth)

    def _items(self, items: list[Any] | tuple[Any, ...], depth: int) -> object:
        if self._all_scalars(items):
            return items
        lowered: list[object] = []
        try:
            for item in items:
                lowered.append(self.lower(item, depth))
        except _Refusal as refusal:
            refusal.path.append(f"[{len(lowered)}]")
            raise
        return lowered

    def _elements(self, elements: set[Any] | frozenset[Any], depth: int) -> bytes:
        self._count(elements)
        try:
            encoded = sorted(_encode(self.lower(element, depth)) for element in elements)
        except _Refusal as refusal:
            refusal.path.append("[*]")
            raise
        return _encode(list(map(msgspec.Raw, encoded)))

    def _dict(self, value: dict[Any, Any], depth: int) -> object:
        if set(map(type, value)) <= _STR_ONLY:
            return self._fields(value, depth)
        self._count(value)
        pairs: list[object] = []
        for key, item in value.items():
            try:
                pairs.append(self.lower(key, depth))
            except _Refusal as refusal:
                refusal.path.append(f"[key {_key_text(key)}]")
                raise
            try:
                pairs.append(self.lower(item, depth))
            except _Refusal as refusal:
                refusal.path.append(_step(key))
                raise
        return Ext(Code.DICT, _encode(pairs))

    def _fields(self, fields: dict[str, Any], depth: int) -> dict[str, object]:
        if self._all_scalars(fields.values()):
            return fields
        lowered: dict[str, object] = {}
        for name, item in fields.items():
            if self._check_scalars and not _is_text(name):
                raise _Refusal(_SURROGATE, f"[key {_key_text(name)}]")
            try:
                lowered[name] = self.lower(item, depth)
            except _Refusal as refusal:
                refusal.path.append(_step(name))
                raise
        return lowered

    def _object(self, value: object, known: registry.Registration, depth: int) -> Ext:
        try:
            fields = known.shape.take(value)
        except UnstorableError as error:
            raise _Refusal(f"({known.name}) {error}") from None
        content: list[object] = [known.name, known.version, self._fields(fields, depth)]
        names_set = known.shape.names_set(value)
        if names_set is not None:
            content.append(names_set)
        return Ext(Code.OBJECT, _encode(content))

    def _all_scalars(self, items: Iterable[Any]) -> bool:
        self._count(items)
        return not self._check_scalars and set(map(type, items)) <= _SCALARS

    def _count(self, items: Any) -> None:
        self._nodes_left -= len(items)
        if self._nodes_left < 0:
            raise _TooLargeError(self._nodes - self._nodes_left)


_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
_SURROGATE: Final = (
    "is text with a lone surrogate, which has no UTF-8 form. Repair it: text.encode(errors='replace').decode()"
)
_BUILT_INS: Final = (
    str,
    bytes,
    int,
    float,
    list,
    dict,
    tuple,
    set,
    frozenset,
    datetime,
    date,
    time,
    timedelta,
    Decimal,
    UUID,
)


def _lower_scalar(value: Any) -> object:
    kind = type(value)
    if kind is int and not -(2**63) <= value < 2**64:
        return Ext(Code.INT, write_int(value))
    if kind is str or kind is bytes:
        if len(value) > MAX_VALUE_BYTES:
            raise _TooLargeError(len(value))
        if kind is str and not _is_text(value):
            raise _Refusal(_SURROGATE)
    return value


def _lower_leaf(value: Any) -> Ext:
    code, write = WRITERS[type(value)]
    try:
        return Ext(code, write(value))
    except UnicodeEncodeError:
        raise _Refusal(_SURROGATE) from None
    except ValueError as error:
        raise _Refusal(str(error)) from None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_not(value: object) -> str:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if is_registrable(kind):
        return f"is a {name}, which is not registered. Register it: agent_sessions.register_type({kind.__name__})"
    if isinstance(value, bytearray | memoryview):
        return f"is a {name}, which can change. Convert it: bytes(...)"
    for base in _BUILT_INS:
        if isinstance(value, base):
            plain = base.__name__
            return f"is a {name}, which would come back as a plain {plain}. Convert it to a {plain} first"
    return (
        f"is a {name}, which can't be stored. Store what it is made of (dict, list, str, ...), "
        "or make it a dataclass and register that: agent_sessions.register_type"
    )


def _step(key: object) -> str:
    if type(key) is str and key.isidentifier():
        return f".{key}"
    return f"[{_key_text(key)}]"


def _key_text(key: object) -> str:
    if type(key) is str:
        return json.dumps(key, ensure_ascii=not _is_text(key))
    if key is None or type(key) is bool or (type(key) is int and key.bit_length() <= _SHOWN_KEY_BITS):
        return str(key)
    return f"<{type(key).__qualname__}>"


def _too_large(root: str, size: str) -> CommitTooLargeError:
    return CommitTooLargeError(
        f"{root} takes {size} bytes; a value takes at most {MAX_VALUE_BYTES:,}. "
        "Split it into several values, or append it to a log in parts.",
        field=root,
    )
