"""Prints of list items: bytes by which items are compared, and copied, without LangGraph's serializer.

The print of a message is its class and its fields, packed; encoding it by the serializer takes ten times as long. Only
what is of exactly the types that MessagePack keeps apart is packed so. The print of anything else is what the
serializer makes of it. So two items of the same print are stored as the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import ormsgpack
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from msgspec import Struct

_STRICT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_pack, _unpack, _set = ormsgpack.packb, ormsgpack.unpackb, object.__setattr__
_fields_of, _extra_of = attrgetter("__dict__"), attrgetter("__pydantic_extra__")


class Prints(Struct, frozen=True):
    """The prints of items in order. Frozen: lists that are shared."""

    classes: list[type | None]
    """None: the serializer has made the bytes."""
    packed: list[bytes]

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, places: slice) -> Prints:
        return Prints(self.classes[places], self.packed[places])

    def size(self, start: int, stop: int) -> int:
        """About how many bytes these items take."""
        return sum(map(len, self.packed[start:stop]))

    def common(self, other: Prints) -> int:
        """How many items at the beginning are the same."""
        most = min(len(self), len(other))
        ours, theirs = self[:most], other[:most]
        if ours == theirs:
            return most
        pairs = zip(ours.classes, ours.packed, theirs.classes, theirs.packed, strict=True)
        return next(place for place, (a, b, c, d) in enumerate(pairs) if a is not c or b != d)

    def keys(self, start: int = 0) -> list[tuple[type | None, bytes]]:
        """The prints of the items from `start` on, to look items up by."""
        return list(zip(self.classes[start:], self.packed[start:], strict=True))


NO_PRINTS = Prints([], [])


def joined(parts: Sequence[Prints]) -> Prints:
    """The prints of several lists, one after another."""
    classes: list[type | None] = []
    packed: list[bytes] = []
    for part in parts:
        classes += part.classes
        packed += part.packed
    return Prints(classes, packed)


def are_prints_of(prints: Prints, items: Sequence[Any], serde: SerializerProtocol) -> bool:
    """Whether these are the prints of items as they are now. Packing all at once takes half as long as each."""
    if len(prints) != len(items):
        return False
    try:
        return _are_of_plain_messages(prints, items)
    except TypeError:
        return prints_of(items, serde) == prints


def _are_of_plain_messages(prints: Prints, items: Sequence[Any]) -> bool:
    classes = _classes_of_plain_messages(items)
    if classes != prints.classes:
        return False
    packed = _pack(list(map(_fields_of, items)), None, _STRICT)
    return packed == _header(len(items)) + b"".join(prints.packed)


def _header(length: int) -> bytes:
    """What a packed list begins with; its items follow one after another."""
    if length < 16:
        return bytes([0x90 | length])
    return b"\xdc" + length.to_bytes(2) if length < 65_536 else b"\xdd" + length.to_bytes(4)


def prints_of(items: Sequence[Any], serde: SerializerProtocol) -> Prints:
    """The prints of items as they are now."""
    try:
        return _of_plain_messages(items)
    except TypeError:
        return Prints(*_of_each(items, serde))


def _of_plain_messages(items: Sequence[Any]) -> Prints:
    """The prints of messages, nearly always all there is; `TypeError` if there is anything else."""
    return Prints(_classes_of_plain_messages(items), [_pack(item.__dict__, None, _STRICT) for item in items])


def _classes_of_plain_messages(items: Sequence[Any]) -> list[type | None]:
    classes: list[type | None] = list(map(type, items))
    if not all(map(_is_message, set(classes))) or any(map(_extra_of, items)):
        raise TypeError
    return classes


def _of_each(items: Sequence[Any], serde: SerializerProtocol) -> tuple[list[type | None], list[bytes]]:
    classes: list[type | None] = []
    packed: list[bytes] = []
    for item in items:
        cls: type | None = type(item)
        try:
            if _is_message(cls):
                extra = item.__pydantic_extra__
                packed.append(_pack([item.__dict__, extra] if extra else item.__dict__, None, _STRICT))
            else:
                packed.append(_pack(item, None, _STRICT))
        except TypeError:
            cls = None
            packed.append(_serialized(item, serde))
        classes.append(cls)
    return classes, packed


class Templates(Struct, frozen=True):
    """Decoded items, to be copied any number of times. A copy shares nothing with another one that can be changed."""

    prints: Prints
    fields_set: list[frozenset[str] | None]
    """Of a message: what pydantic notes as given. None: no message."""
    has_extra: list[bool]

    @classmethod
    def of(cls, items: Sequence[Any], prints: Prints) -> Templates | None:
        """None if one of the items can only be copied by the serializer."""
        if None in prints.classes:
            return None
        fields_set: list[frozenset[str] | None] = []
        has_extra: list[bool] = []
        for item, kind in zip(items, prints.classes, strict=True):
            if not _is_message(kind):
                fields_set.append(None)
                has_extra.append(False)
            elif item.__pydantic_private__ is None:
                fields_set.append(frozenset(item.__pydantic_fields_set__))
                has_extra.append(bool(item.__pydantic_extra__))
            else:
                return None
        return cls(prints, fields_set, has_extra)

    def copies(self, start: int, stop: int) -> list[Any]:
        """New objects, equal to these items."""
        packed, copies = self.prints.packed[start:stop], []
        for place, value in enumerate(_unpack(_header(len(packed)) + b"".join(packed)), start):
            given = self.fields_set[place]
            if given is None:
                copies.append(value)
                continue
            fields, extra = value if self.has_extra[place] else (value, {})
            kind: Any = self.prints.classes[place]
            message = kind.__new__(kind)
            _set(message, "__dict__", fields)
            _set(message, "__pydantic_extra__", extra)
            _set(message, "__pydantic_fields_set__", set(given))
            _set(message, "__pydantic_private__", None)
            copies.append(message)
        return copies


@lru_cache(maxsize=1024)
def _is_message(cls: type | None) -> bool:
    """Whether the fields of an object of this class are all that a serializer stores of it."""
    return cls is not None and issubclass(cls, BaseMessage) and cls.__module__.startswith("langchain_core.messages.")


def _serialized(item: Any, serde: SerializerProtocol) -> bytes:
    inner = serde.serde if isinstance(serde, EncryptedSerializer) else serde  # encryption is never the same twice
    kind, data = inner.dumps_typed([item])  # in a list, as it is stored
    return kind.encode() + b"\x00" + data
