"""The names of items.

All items of a session lie in one partition. Its record is the item `R`. Every other item belongs to one *life* of the
session, from its making to its deletion, and begins with the life's 8 bytes, so that no life ever meets another's:

| sort key (bytes) | item |
|---|---|
| `R` | the record: version, lease, heads of logs, times |
| life `C` part key | an entry of a collection |
| life `D` revision | the directory of its parts, if they are many |
| life `L` part revision | a frame: what one commit appended to one log |
| life `T` | the record's fields |
| life `V` part name | a value |
| life `X` stage number | a piece of what is too large for one item |

A part is the number that the record gives to a namespace, a log or a collection. Names are raw UTF-8, so the order of
items is that of the names' bytes, and nothing needs escaping.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple, TypeAlias
from zlib import crc32

from agent_sessions.stores.base import Key, Kind

SHARDS = 8
"""Over how many index partitions a tenant's keys of one kind are spread. A constant of the format."""

LONGEST_PARTITION = 1024
"""Bytes of a partition key that may be spelt out; a longer one is replaced by its hash."""

RECORD = b"R"

_KINDS: dict[Kind, str] = {"session": "s", "user": "u", "app": "a", "agent": "g", "run": "r", "system": "y"}
_KIND_OF = {letter: kind for kind, letter in _KINDS.items()}
_SPECIAL = re.compile("[%/#]")
_ESCAPED = re.compile("%([0-9A-F]{2})")

_HIGHEST = b"\xff"  # no UTF-8 has this byte: what begins with a prefix lies below prefix + _HIGHEST

Span: TypeAlias = tuple[bytes, bytes]
"""A range of sort keys, both ends included."""


# --------------------------------------------------------------------------------------------------- partitions


def partition(key: Key) -> str:
    """The partition of a key's items."""
    return _short(f"{_KINDS[key.kind]}/{_escape(key.tenant)}/{_escape(key.id)}")


def spelt_out(key: Key) -> list[str] | None:
    """What the partition's name can't tell, since it is a hash: tenant and id, to be kept in the record."""
    return [key.tenant, key.id] if "#" in partition(key) else None


def key_of(partition_key: str, spelt: list[str] | None) -> Key:
    """Whose partition this is."""
    letter, _, rest = partition_key.partition("/")
    tenant, id = spelt if spelt is not None else map(_unescape, rest.split("/"))
    return Key(tenant, _KIND_OF[letter], id)


def tenant_shards(tenant: str, kind: Kind) -> list[str]:
    """The index partitions of a tenant's keys of a kind."""
    return [_short(f"{_KINDS[kind]}/{_escape(tenant)}") + f"/{shard}" for shard in range(SHARDS)]


def tenant_shard(key: Key) -> str:
    """The one that a key is in."""
    return tenant_shards(key.tenant, key.kind)[crc32(key.id.encode()) % SHARDS]


def user_index(tenant: str, kind: Kind, user: str) -> str:
    """The index partition of what belongs to a user."""
    return _short(f"{_KINDS[kind]}/{_escape(tenant)}/{_escape(user)}")


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _short(name: str) -> str:
    raw = name.encode()
    # No escaped text has a `#` of its own, so none is taken for a hash.
    return name if len(raw) <= LONGEST_PARTITION else f"{name[0]}/#{blake2b(raw, digest_size=24).hexdigest()}"


# --------------------------------------------------------------------------------------------------- items


class Names(NamedTuple):
    """The names of the items of one life."""

    id: bytes

    @property
    def everything(self) -> Span:
        """All items of the life."""
        return self.id, self.id + _HIGHEST * 2

    @property
    def fields(self) -> bytes:
        """The record's fields."""
        return self.id + b"T"

    @property
    def fields_and_values(self) -> Span:
        """The record's fields and all values."""
        return self.fields, self.id + b"V" + _HIGHEST * 5

    @property
    def all_values(self) -> Span:
        """The values of all namespaces."""
        return self.id + b"V", self.id + b"V" + _HIGHEST * 5

    def values(self, namespace: int) -> Span:
        """The values of one namespace."""
        start = self.value(namespace, "")
        return start, start + _HIGHEST

    def value(self, namespace: int, name: str) -> bytes:
        """A value."""
        return self.id + b"V" + namespace.to_bytes(4) + name.encode()

    def entry(self, collection: int, key: str) -> bytes:
        """An entry of a collection."""
        return self.id + b"C" + collection.to_bytes(4) + key.encode()

    def entries(self, collection: int, prefix: str = "", after: str | None = None, before: str | None = None) -> Span:
        """The entries of a range; `before` itself may be among them."""
        low = high = self.entry(collection, prefix)
        high += _HIGHEST
        if after is not None:
            low = max(low, self.entry(collection, after) + b"\0")
        if before is not None:
            high = min(high, self.entry(collection, before))
        return low, high

    def directory(self, revision: int) -> bytes:
        """The directory that the commit of a revision wrote."""
        return self.id + b"D" + revision.to_bytes(6)

    def frame(self, log: int, revision: int) -> bytes:
        """What the commit of a revision appended to a log."""
        return self.id + b"L" + log.to_bytes(4) + revision.to_bytes(6)

    def frames(self, log: int, first: int, last: int) -> Span:
        """The frames of these revisions."""
        return self.frame(log, first), self.frame(log, last)

    def piece(self, stage: bytes, number: int) -> bytes:
        """A piece of something large."""
        return self.id + b"X" + stage + number.to_bytes(4)

    def pieces(self, stage: bytes, first: int = 0, count: int = 2**32) -> Span:
        """So many pieces."""
        return self.piece(stage, first), self.piece(stage, first + count - 1)


def name_in(sort_key: bytes) -> str:
    """The name of a value, or the key of an entry."""
    return sort_key[13:].decode()


def part_in(sort_key: bytes) -> int:
    """The number of a value's namespace."""
    return int.from_bytes(sort_key[9:13])


def revision_in(sort_key: bytes) -> int:
    """The revision of a frame."""
    return int.from_bytes(sort_key[13:19])
