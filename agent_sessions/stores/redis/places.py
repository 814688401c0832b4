"""Places in the indexes: what is read of a session for them, and how they are changed."""

from __future__ import annotations

import struct
from typing import Any, Literal, NamedTuple, Self

from agent_sessions.stores import base
from agent_sessions.stores.base import FORMAT, Cursor, Found, Key
from agent_sessions.stores.lifetime import Status
from agent_sessions.stores.redis import life
from agent_sessions.stores.redis.keys import decode, encode
from agent_sessions.stores.redis.refusals import too_new

ROLES: dict[base.Order, bytes] = {"activity": b"a", "start": b"s"}
_STATUSES: list[Status | None] = [None, "active", "idle", "ended"]


class Order(NamedTuple):
    """What tells which of two states of a session is the later one."""

    started_at: int
    writes: int


LAST_OF_A_LIFE = 2**53
"""After all others."""


class Place(NamedTuple):
    """A place in a listing."""

    cursor: Cursor
    status: Status
    gone_at: int | None
    """On a cluster: when the session goes; None: it was only entered."""
    order: bytes
    """On a cluster: the packed order of its last change, if there is one."""


STAMP_FIELDS = (b"v", b"l", b"p", b"b")
"""What to read of a main hash for a stamp."""


class Stamp(NamedTuple):
    """What a record says of its place."""

    order: Order
    life: bytes
    belongs_to: bytes

    @classmethod
    def of(cls, packed: bytes, belongs_to: bytes) -> Self:
        """By its life."""
        lived = life.unpack(packed)
        return cls(Order(lived.course.started_at, lived.writes), packed, belongs_to)

    @classmethod
    def read(cls, fields: list[bytes | None], now: int) -> Self | None:
        """By `STAMP_FIELDS`, as HMGET answers; None if the session is gone."""
        revision, times, lasts, belongs_to = fields
        if revision is None or times is None or lasts is None or life.gone_by(times, now):
            return None
        return cls.of(times + lasts, belongs_to or b"")


class Change(NamedTuple):
    """What `index.lua` does with a place."""

    what: Literal[b"E", b"M", b"S", b"C", b"R", b"L", b"F", b"W"]
    id: bytes
    order: Order = Order(0, 0)
    life: bytes = b""
    hold_ms: int | None = None
    seen: bytes = b""
    """The packed order of the place as it was seen."""

    @classmethod
    def by(cls, stamp: Stamp, what: Literal[b"S", b"C", b"R"], id: bytes, seen: bytes = b"") -> Self:
        """As a commit, or a record, says."""
        return cls(what, id, stamp.order, stamp.life, seen=seen)

    def packed(self) -> tuple[bytes, bytes]:
        """Two arguments."""
        head = struct.pack(">cddH", self.what, *self.order, len(self.life)) + self.life
        hold = -1 if self.hold_ms is None else self.hold_ms
        return head + struct.pack(">dB", hold, len(self.seen)) + self.seen, self.id


class Repair(NamedTuple):
    """What `repair.lua` does with a place."""

    what: Literal[b"F", b"E", b"R"]
    id: bytes
    role: bytes = b"a"
    """Of the place as it was seen: that by activity (a), start (s) or end (e)."""
    at: int = 0
    """The time that it had."""
    life: bytes = b""

    def packed(self) -> tuple[bytes, bytes]:
        """Two arguments."""
        return struct.pack(">ccdH", self.what, self.role, self.at, len(self.life)) + self.life, self.id


def pack_find(now: int, limit: int, after: Cursor | None, order: base.Order, status: Status | None) -> bytes:
    """The argument of `find.lua`."""
    at, id = (after.at, encode(after.id)) if after is not None else (-1, b"")
    return struct.pack(">dddH", now, limit, at, len(id)) + id + ROLES[order] + bytes((_STATUSES.index(status),))


def pack_count(now: int, status: Status | None) -> bytes:
    """The argument of `count.lua`."""
    return struct.pack(">dB", now, _STATUSES.index(status))


def pack_run_out(now: int, limit: int) -> bytes:
    """The argument of `run_out.lua`."""
    return struct.pack(">dd", now, limit)


def found_by(key: Key, raw: dict[bytes, bytes], now: int) -> Found | None:
    """A session as a listing shows it, by its main hash; None if it is gone."""
    if b"v" not in raw or life.gone_by(raw[b"l"], now):
        return None
    if int(raw[b"f"]) > FORMAT:
        raise too_new(key, int(raw[b"f"]))
    fields = {decode(name[1:]): value for name, value in raw.items() if name.startswith(b".")}
    row = life.row(life.of(raw), raw.get(b"m", b""), raw.get(b"b", b""), raw[b"t"], fields)
    return Found(key.id, row, int(raw[b"v"]))


def unpack_found(flat: list[Any]) -> list[Place]:
    """The places that `find.lua` answers."""
    return [
        Place(Cursor(int(at), decode(id)), status.decode(), None if gone is None else int(gone), order or b"")
        for id, at, status, gone, order in zip(flat[::5], flat[1::5], flat[2::5], flat[3::5], flat[4::5], strict=True)
    ]


def unpack_run_out(flat: list[Any]) -> list[Place]:
    """The places that `run_out.lua` answers: those of their ends."""
    return [
        Place(Cursor(int(at), decode(id)), "ended", None, order or b"")
        for id, at, order in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
