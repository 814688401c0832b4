"""Places in the indexes: what is read of a session for them, and how they are changed."""

from __future__ import annotations

import struct
from math import inf
from typing import Any, Literal, NamedTuple, Self

from agent_sessions.stores.base import FORMAT, Cursor, Key, Row
from agent_sessions.stores.redis.keys import decode, encode, user_of
from agent_sessions.stores.redis.refusals import too_new

NEVER = -1
"""In place of the time at which a session goes."""


class Order(NamedTuple):
    """What tells which of two states of a session is the later one."""

    started_at: int
    revision: int


LAST_OF_A_LIFE = 2**53
"""A revision after all others."""


class Place(NamedTuple):
    """A place in a listing."""

    cursor: Cursor
    end: float | None
    """When the session goes. None: the index by end has no place for it; below zero: it was only entered there."""
    order: bytes
    """The packed order of its last change, if there is one."""


STAMP_FIELDS = (b"v", b"s", b"a", b"g", b"b")
"""What to read of a main hash for a stamp."""


class Stamp(NamedTuple):
    """What a record says of its place."""

    order: Order
    active_at: int
    gone_at: int
    belongs_to: bytes

    @classmethod
    def of(cls, row: Row, revision: int, belongs_to: bytes) -> Self:
        """By a row."""
        gone_at = NEVER if row.gone_at is None else row.gone_at
        return cls(Order(row.started_at, revision), row.active_at, gone_at, belongs_to)

    @property
    def end(self) -> float:
        """As an index has it."""
        return inf if self.gone_at == NEVER else self.gone_at

    @classmethod
    def read(cls, fields: list[bytes | None], now: int) -> Self | None:
        """By `STAMP_FIELDS`, as HMGET answers; None if the session is gone."""
        revision, started, active, gone, belongs_to = fields
        gone_at = NEVER if gone is None else int(float(gone))
        if revision is None or started is None or active is None or 0 <= gone_at <= now:
            return None
        return cls(Order(int(started), int(revision)), int(active), gone_at, belongs_to or b"")


class Change(NamedTuple):
    """What `index.lua` does with a place."""

    what: Literal[b"E", b"M", b"S", b"C", b"R", b"L", b"F", b"W"]
    id: bytes
    order: Order = Order(0, 0)
    active_at: int = 0
    gone_at: int = 0
    seen: bytes = b""
    """The packed order of the place as it was seen."""

    @classmethod
    def by(cls, stamp: Stamp, what: Literal[b"S", b"C", b"R"], id: bytes, seen: bytes = b"") -> Self:
        """As a commit, or a record, says."""
        return cls(what, id, stamp.order, stamp.active_at, stamp.gone_at, seen)

    def packed(self) -> tuple[bytes, bytes]:
        """Two arguments."""
        numbers = struct.pack(">cddddB", self.what, *self.order, self.active_at, self.gone_at, len(self.seen))
        return numbers + self.seen, self.id


class Repair(NamedTuple):
    """What `repair.lua` does with a place."""

    what: Literal[b"F", b"R"]
    id: bytes
    active_at: int
    gone_at: int = 0

    def packed(self) -> tuple[bytes, bytes]:
        """Two arguments."""
        return struct.pack(">cdd", self.what, self.active_at, self.gone_at), self.id


def pack_find(now: int, limit: int, after: Cursor | None) -> bytes:
    """The argument of `find.lua`."""
    time, id = (after.active_at, encode(after.id)) if after is not None else (-1, b"")
    return struct.pack(">dddH", now, limit, time, len(id)) + id


def row_of(key: Key, raw: dict[bytes, bytes], now: int) -> Row | None:
    """The row of a session, by its main hash; None if it is gone."""
    gone = int(float(raw[b"g"])) if b"g" in raw else None
    if b"v" not in raw or (gone is not None and gone <= now):
        return None
    if int(raw[b"f"]) > FORMAT:
        raise too_new(key, int(raw[b"f"]))
    return Row(
        started_at=int(raw[b"s"]),
        active_at=int(raw[b"a"]),
        gone_at=gone,
        belongs_to=user_of(raw.get(b"b", b"")),
        record_tag=raw[b"t"],
        fields={decode(name[1:]): value for name, value in raw.items() if name.startswith(b".")},
    )


def unpack_found(flat: list[Any]) -> list[Place]:
    """The places that `find.lua` answers."""
    return [
        Place(Cursor(int(float(active)), decode(id)), None if end is None else float(end), order or b"")
        for id, active, end, order in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    ]
