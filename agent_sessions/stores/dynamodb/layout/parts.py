"""The parts of a session: its namespaces, logs and collections, and where each stands.

The record names them. Of a session with many, such as one log for each call of a sub-agent, the record would be too
dear to write with every turn: where the parts take more than 1 KB, they are put into an item of their own, the
directory, and the record names only what has changed since.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field, structs

from agent_sessions.stores.base import Discreet, LogHead, Part

MOST_IN_RECORD = 1024
"""Bytes of parts, encoded, that a record may hold."""

T = TypeVar("T")


class Namespace(Discreet, Struct, array_like=True):
    """A namespace. Its number, and that of a log or collection, is its place in the list, and never another's."""

    name: str
    revision: int = 0
    """The last commit that changed a value in it; 0: none did."""
    has_large: bool = False
    """Whether a value in it may lie in pieces."""


class Log(Discreet, Struct, array_like=True):
    """A log."""

    namespace: int
    name: str
    count: int = 0
    last: int = 0
    """The sequence number of the last item; 0 if there is none."""
    assigned: int = 0
    """The highest sequence number that was ever given."""
    first_frame: int = 0
    """The revision before which all frames are dead: the last clearing."""
    cut_at: int = 0
    """The revision that last took items off."""

    @property
    def head(self) -> LogHead:
        """Where it stands."""
        return LogHead(self.count, self.last)


class Collection(Discreet, Struct, array_like=True):
    """A collection."""

    namespace: int
    name: str
    revision: int = 0
    """The last commit that changed it; 0: it has no entries."""
    has_large: bool = False
    """Whether an entry of it may lie in pieces."""


class Parts(Discreet, Struct, array_like=True):
    """All parts of a session. It is written by one commit and then never changed: `copy` before `ensure_...`."""

    namespaces: list[Namespace] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    collections: list[Collection] = field(default_factory=list)
    has_fields: bool = False
    """Whether there is an item with the record's fields."""
    has_large_fields: bool = False
    """Whether it may lie in pieces."""

    def part(self, of: Log | Collection) -> Part:
        """The name of a log or a collection."""
        return Part(self.namespaces[of.namespace].name, of.name)

    def namespace(self, name: str) -> int | None:
        """The number of a namespace."""
        return next((number for number, known in enumerate(self.namespaces) if known.name == name), None)

    def log(self, part: Part) -> int | None:
        """The number of a log."""
        return self._find(self.logs, part)

    def collection(self, part: Part) -> int | None:
        """The number of a collection."""
        return self._find(self.collections, part)

    def ensure_namespace(self, name: str) -> int:
        """The number of a namespace, which is entered if it is new."""
        number = self.namespace(name)
        if number is None:
            self.namespaces.append(Namespace(name))
            number = len(self.namespaces) - 1
        return number

    def ensure_log(self, part: Part) -> int:
        """The number of a log, which is entered if it is new."""
        number = self.log(part)
        if number is None:
            self.logs.append(Log(self.ensure_namespace(part.namespace), part.name))
            number = len(self.logs) - 1
        return number

    def ensure_collection(self, part: Part) -> int:
        """The number of a collection, which is entered if it is new."""
        number = self.collection(part)
        if number is None:
            self.collections.append(Collection(self.ensure_namespace(part.namespace), part.name))
            number = len(self.collections) - 1
        return number

    def copy(self) -> Parts:
        """One that may be changed."""
        return Parts(
            [structs.replace(namespace) for namespace in self.namespaces],
            [structs.replace(log) for log in self.logs],
            [structs.replace(collection) for collection in self.collections],
            self.has_fields,
            self.has_large_fields,
        )

    def _find(self, parts: list[Any], part: Part) -> int | None:
        namespace = self.namespace(part.namespace)
        if namespace is None:
            return None
        found = (i for i, known in enumerate(parts) if known.name == part.name and known.namespace == namespace)
        return next(found, None)


class Changes(Discreet, Struct, array_like=True):
    """What the record holds: parts by their numbers, as far as they differ from those of the directory."""

    directory: int = 0
    """The revision of the directory; 0: there is none."""
    namespaces: dict[int, Namespace] = field(default_factory=dict)
    logs: dict[int, Log] = field(default_factory=dict)
    collections: dict[int, Collection] = field(default_factory=dict)
    has_fields: bool = False
    has_large_fields: bool = False

    def onto(self, directory: Parts) -> Parts:
        """All parts."""
        return Parts(
            _merged(directory.namespaces, self.namespaces),
            _merged(directory.logs, self.logs),
            _merged(directory.collections, self.collections),
            self.has_fields,
            self.has_large_fields,
        )

    @classmethod
    def between(cls, directory: Parts, parts: Parts, revision: int) -> Changes:
        """What has changed since the directory of a revision."""
        return cls(
            revision,
            _changed(directory.namespaces, parts.namespaces),
            _changed(directory.logs, parts.logs),
            _changed(directory.collections, parts.collections),
            parts.has_fields,
            parts.has_large_fields,
        )


_encoder = msgspec.msgpack.Encoder()
_parts_decoder = msgspec.msgpack.Decoder(Parts)
_changes_decoder = msgspec.msgpack.Decoder(Changes)


def encode(parts: Parts | Changes) -> bytes:
    """As they are stored."""
    return _encoder.encode(parts)


def decode_parts(raw: bytes) -> Parts:
    """A directory."""
    return _parts_decoder.decode(raw)


def decode_changes(raw: bytes) -> Changes:
    """What the record holds."""
    return _changes_decoder.decode(raw)


def _merged(old: list[T], changed: dict[int, T]) -> list[T]:
    added = max(changed, default=-1) + 1 - len(old)
    merged = [*old, *[changed[len(old) + number] for number in range(max(0, added))]]
    for number, part in changed.items():
        merged[number] = part
    return merged


def _changed(old: list[T], new: list[T]) -> dict[int, T]:
    changed = {number: part for number, part in enumerate(new[: len(old)]) if part != old[number]}
    return changed | dict(enumerate(new[len(old) :], len(old)))
