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
_NEVER = NEVER.to_bytes(6)
_NOTHING_OWN = b"\0"
_GONE, _IDLE, _ENDS, _STARTED, _ACTIVE, _ENDED, _EXPIRES = (slice(at, at + 6) for at in range(0, 42, 6))
_WRITES, _LIFETIME, _OWN = slice(42, 48), slice(48, 78), slice(78, None)


class Life(Struct, frozen=True):
    """The life of a session at some moment."""

    stamps: Stamps
    course: Course
    lifetime: Lifetime
    writes: int
    """How many times it changed."""
    own: Own

    def packed(self) -> bytes:
        """As it is stored."""
        idle_at, ends_at, gone_at = self.stamps
        times = b"".join(map(pack_time, (gone_at, idle_at, ends_at, *self.course)))
        return times + self.writes.to_bytes(6) + pack_lifetime(self.lifetime) + pack_own(self.own)


def unpack(raw: bytes) -> Life:
    """The reverse of `Life.packed`."""
    return Life(
        Stamps(_time(raw[_IDLE]), _time(raw[_ENDS]), _time(raw[_GONE])),
        Course(int.from_bytes(raw[_STARTED]), int.from_bytes(raw[_ACTIVE]), _time(raw[_ENDED]), _time(raw[_EXPIRES])),
        _unpack_lifetime(raw[_LIFETIME]),
        int.from_bytes(raw[_WRITES]),
        _unpack_own(raw[_OWN]),
    )


def of(raw: Mapping[bytes, bytes]) -> bytes:
    """The life that a main hash keeps."""
    return raw[b"l"] + raw[b"p"]


def gone_by(raw: bytes, now: int) -> bool:
    """Whether a life that is packed is over."""
    return int.from_bytes(raw[_GONE]) <= now


def row(raw: bytes, counters: bytes, belongs_to: bytes, record_tag: bytes, fields: dict[str, bytes] | None) -> Row:
    """The row of a session."""
    return Row(
        int.from_bytes(raw[_STARTED]),
        int.from_bytes(raw[_ACTIVE]),
        _time(raw[_GONE]),
        user_of(belongs_to),
        record_tag,
        fields,
        _time(raw[_IDLE]),
        _time(raw[_ENDS]),
        _time(raw[_ENDED]),
        _time(raw[_EXPIRES]),
        _unpack_lifetime(raw[_LIFETIME]),
        _unpack_own(raw[_OWN]),
        _unpack_counters(counters),
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
    if not own:
        return _NOTHING_OWN
    which = sum(1 << place for place, name in enumerate(Lifetime._fields) if name in own)
    return bytes((which,)) + b"".join(pack_time(own[name]) for name in Lifetime._fields if name in own)


def pack_beginning(commit: Commit) -> bytes:
    """What a commit says of the life that it begins."""
    if commit.course is not None:
        return b"".join(map(pack_time, commit.course)) + pack_own(commit.own)
    return 3 * pack_time(None) + pack_time(commit.expires_at) + pack_own(commit.own)


def pack_counters(counters: Mapping[str, int]) -> bytes:
    """Names and numbers."""
    if not counters:
        return b""
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
    return Lifetime(*(_time(raw[at : at + 6]) for at in range(0, 30, 6)))


@lru_cache(256)
def _unpack_own(raw: bytes) -> Mapping[str, int | None]:
    names = [name for place, name in enumerate(Lifetime._fields) if raw[0] & 1 << place]
    return {name: _time(raw[at : at + 6]) for at, name in zip(range(1, len(raw), 6), names, strict=True)}


def _time(raw: bytes) -> int | None:
    return None if raw == _NEVER else int.from_bytes(raw)
