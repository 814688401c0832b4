"""The life of a session as the scripts store it (`life.lua`), and the row that it makes.

Times and durations are 6 bytes; the highest number stands for never, and for without end.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache

from msgspec import Struct

from agent_sessions.stores.base import Commit, Row
from agent_sessions.stores.lifetime import Course, Lifetime, Own, Stamps
from agent_sessions.stores.redis.keys import decode, encode, user_of

NEVER = 2**48 - 1
_LIFETIME = slice(42, 72)


class Life(Struct, frozen=True):
    """The life of a session at some moment."""

    stamps: Stamps
    course: Course
    lifetime: Lifetime
    writes: int
    """How many times it changed."""
    own: dict[str, int | None]

    def packed(self) -> bytes:
        """As it is stored."""
        idle_at, ends_at, gone_at = self.stamps
        times = b"".join(map(pack_time, (gone_at, idle_at, ends_at, *self.course)))
        return times + pack_lifetime(self.lifetime) + self.writes.to_bytes(6) + pack_own(self.own)


def unpack(raw: bytes) -> Life:
    """The reverse of `Life.packed`."""
    gone_at, idle_at, ends_at, started_at, active_at, ended_at, expires_at = (_time(raw, at) for at in range(0, 42, 6))
    return Life(
        Stamps(idle_at, ends_at, gone_at),
        Course(started_at or 0, active_at or 0, ended_at, expires_at),
        _unpack_lifetime(raw[_LIFETIME]),
        int.from_bytes(raw[72:78]),
        _unpack_own(raw, 78) if raw[78] else {},
    )


def gone_by(raw: bytes, now: int) -> bool:
    """Whether a life that is packed is over."""
    return int.from_bytes(raw[:6]) <= now


def row(raw: bytes, counters: bytes, belongs_to: bytes, record_tag: bytes, fields: dict[str, bytes] | None) -> Row:
    """The row of a session."""
    life = unpack(raw)
    return Row(
        *life.course[:2],
        life.stamps.gone_at,
        user_of(belongs_to),
        record_tag,
        fields,
        life.stamps.idle_at,
        life.stamps.ends_at,
        *life.course[2:],
        life.lifetime,
        life.own,
        _unpack_counters(counters) if counters else {},
    )


def pack_time(at: int | None) -> bytes:
    """A time or duration."""
    return (NEVER if at is None else max(0, min(at, NEVER - 1))).to_bytes(6)


@lru_cache(256)
def pack_lifetime(lifetime: Lifetime) -> bytes:
    """Five durations."""
    return b"".join(map(pack_time, lifetime))


def pack_own(own: Own) -> bytes:
    """A byte that says which of the lifetime there are, and these."""
    which = sum(1 << place for place, name in enumerate(Lifetime._fields) if name in own)
    return bytes((which,)) + b"".join(pack_time(own[name]) for name in Lifetime._fields if name in own)


def pack_beginning(commit: Commit) -> bytes:
    """What a commit says of the life that it begins."""
    if commit.course is not None:
        return b"".join(map(pack_time, commit.course)) + pack_own(commit.own)
    return 3 * pack_time(None) + pack_time(commit.expires_at) + pack_own(commit.own)


def pack_counters(counters: Mapping[str, int]) -> bytes:
    """Names and numbers."""
    names = [(encode(name), number) for name, number in counters.items()]
    return b"".join(struct.pack(">H", len(name)) + name + struct.pack(">d", number) for name, number in names)


def _unpack_counters(raw: bytes) -> dict[str, int]:
    counters, at = {}, 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2])
        (number,) = struct.unpack_from(">d", raw, end)
        counters[decode(raw[at + 2 : end])] = int(number)
        at = end + 8
    return counters


@lru_cache(256)
def _unpack_lifetime(raw: bytes) -> Lifetime:
    return Lifetime(*(_time(raw, at) for at in range(0, 30, 6)))


def _unpack_own(raw: bytes, at: int) -> dict[str, int | None]:
    names = [name for place, name in enumerate(Lifetime._fields) if raw[at] & 1 << place]
    return {name: _time(raw, at + 1 + 6 * place) for place, name in enumerate(names)}


def _time(raw: bytes, at: int) -> int | None:
    time = int.from_bytes(raw[at : at + 6])
    return None if time == NEVER else time
