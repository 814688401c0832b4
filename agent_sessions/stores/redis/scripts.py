"""The Lua scripts, and the packing of what goes in and out of them.

Small arguments travel packed in one header, as the scripts unpack them; times and revisions as doubles, which are
exact to 2**53 and what Lua counts in. Payloads are arguments of their own and are sent once.
"""

from __future__ import annotations

import struct
from hashlib import sha1
from importlib import resources
from typing import NamedTuple

from msgspec import UNSET

from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    Commit,
    EntryRange,
    Known,
    LeaseWanted,
    LogWanted,
    Part,
    Row,
    Version,
    Wanted,
)
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.stores.redis import life
from agent_sessions.stores.redis.keys import (
    KeyNames,
    decode,
    encode,
    escape,
    part_id,
    part_of,
    unescape,
    user_id,
)
from agent_sessions.stores.redis.registry import Registry

HIGHEST = b"\xff"
"""Comes after every byte of UTF-8."""


class Script(NamedTuple):
    """A script's text, and the name under which Redis keeps it."""

    text: bytes
    sha: bytes


def _load(name: str, *pages: str) -> Script:
    folder = resources.files(__package__)
    text = b"".join((folder / f"{page}.lua").read_bytes() for page in ("common", *pages, name))
    return Script(text, sha1(text, usedforsecurity=False).hexdigest().encode())


OPEN, RELEASE, UNLOCK, STATUS = map(_load, ("open", "release", "unlock", "status"))
COMMIT, AMEND, RENEW, DELETE, FIND, COUNT, RUN_OUT, REPAIR, INDEX = (
    _load(name, "life", "places")
    for name in ("commit", "amend", "renew", "delete", "find", "count", "run_out", "repair", "index")
)

ELSEWHERE = b"-"
"""Declared in place of a user: the indexes are on another node, perhaps, and no business of this script."""


def _string(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


# --------------------------------------------------------------------------------------------------- open

_WANTS_LEASE, _QUEUES, _HAS_KNOWN, _WANTS_VALUES, _HAS_REGISTRY, _READS_VALUES_ITSELF = 1, 2, 4, 8, 16, 32


class OpenCall(NamedTuple):
    """The arguments of the script, and what is read beside it by plain commands."""

    keys: list[bytes]
    argv: list[bytes]
    beside: list[tuple[bytes, ...]]
    logs_beside: list[int]
    values_beside: bool


def pack_open(
    names: KeyNames,
    now: int,
    wanted: Wanted,
    known: Known | None,
    lease: LeaseWanted | None,
    *,
    channel: bytes,
    held: Registry | None,
    long_log: int,
) -> OpenCall:
    """Build the call. A log of which more than `long_log` items may come is read by a plain LRANGE beside the script.

    That costs the server a seventh of reading it in Lua, and stays one round trip, and one moment, in a MULTI.
    """
    flags = _WANTS_VALUES if wanted.values else 0
    values_beside = wanted.values and known is None
    if values_beside:
        flags |= _READS_VALUES_ITSELF
    revision, commit_id, tag = 0, b"", b""
    if known is not None:
        flags |= _HAS_KNOWN | (_HAS_REGISTRY if held is not None and held.version == known.version else 0)
        (revision, commit_id), tag = known
    owner, ms = b"", 0
    if lease is not None:
        flags |= _WANTS_LEASE | (_QUEUES if lease.queue else 0)
        owner, ms = encode(lease.owner), lease.ms

    keys, argv = [names.main], [b""]
    if wanted.values and not (held is not None and flags & _HAS_REGISTRY and not held.has_values):
        keys.append(names.values)
    beside: list[tuple[bytes, ...]] = [(b"HGETALL", names.values)] if values_beside else []
    logs_beside = []
    specs = []
    for i, log in enumerate(wanted.logs):
        name = part_id(log.part)
        itself = _reads_itself(log, name, known, held, long_log)
        if itself:
            logs_beside.append(i)
            if log.limit != 0:
                beside.append((b"LRANGE", names.log(name), b"%d" % -(log.limit or 0), b"-1"))
        keys.append(names.log(name))
        specs.append(struct.pack(">dddB", log.count, log.last, -1 if log.limit is None else log.limit, itself))

    specs += _ask_collections(names, wanted, keys, argv)
    argv[0] = b"".join(
        (
            struct.pack(">dBddB", now, flags, ms, revision, len(commit_id)) + commit_id,
            bytes((len(tag),)) + tag,
            _string(owner),
            bytes((len(channel),)) + channel,
            struct.pack(">HHH", len(wanted.logs), len(wanted.entries), len(wanted.ranges)),
            *specs,
        )
    )
    return OpenCall(keys, argv, beside, logs_beside, values_beside)


def _ask_collections(names: KeyNames, wanted: Wanted, keys: list[bytes], argv: list[bytes]) -> list[bytes]:
    """Add the keys and arguments of entries and ranges; return what the header says of them."""
    specs, places = [], dict[Part, int]()
    for part in [part for part, _ in wanted.entries] + [a_range.part for a_range in wanted.ranges]:
        if part not in places:
            places[part] = len(places)
            keys.extend(names.collection(part_id(part)))
    for part, entry in wanted.entries:
        specs.append(struct.pack(">H", places[part]))
        argv.append(encode(entry))
    for a_range in wanted.ranges:
        limit = -1 if a_range.limit is None else a_range.limit
        specs.append(struct.pack(">HBd", places[a_range.part], a_range.reverse, limit))
        argv.extend(_bounds(a_range))
    return specs


def _reads_itself(log: LogWanted, name: bytes, known: Known | None, held: Registry | None, long_log: int) -> bool:
    if log.count:
        return False
    if known is None:
        return True
    count = held.logs.get(name, (0, 0, 0))[0] if held is not None else 0
    return min(count, count if log.limit is None else log.limit) > long_log


def _bounds(a_range: EntryRange) -> tuple[bytes, bytes]:
    """The range as Redis writes it: `[` includes, `(` excludes, `-` and `+` are the ends."""
    prefix = encode(a_range.prefix)
    low, high = (b"[" + prefix, b"(" + prefix + HIGHEST) if prefix else (b"-", b"+")
    if a_range.after is not None and (after := encode(a_range.after)) >= prefix:
        low = b"(" + after
    if a_range.before is not None and (before := encode(a_range.before)) <= prefix + HIGHEST:
        high = b"(" + before
    return low, high


class Head(NamedTuple):
    """What `open.lua` always answers."""

    exists: bool
    continues: bool
    granted: bool
    held: bool
    same: bool
    now: int
    version: Version
    lease_until: int
    lease_since: int
    waiters: int
    again_ms: int
    """If refused: after so long the answer may be another one, even if nobody wakes the caller."""
    record_tag: bytes
    belongs_to: bytes
    lease_owner: str
    """Empty: the caller itself."""
    life: bytes
    counters: bytes

    def row(self, fields: dict[str, bytes] | None) -> Row:
        """The row, of which the record's fields came apart."""
        return life.row(self.life, self.counters, self.belongs_to, self.record_tag, fields)


_HEAD = struct.Struct(">BddddHI")


def unpack_head(raw: bytes) -> Head:
    """Read a head."""
    bits, now, revision, until, since, waiters, again = _HEAD.unpack_from(raw)
    id, at = _short_string(raw, _HEAD.size)
    tag, at = _short_string(raw, at)
    belongs, at = _long_string(raw, at)
    owner, at = _long_string(raw, at)
    packed_life, at = _long_string(raw, at)
    counters, at = _long_string(raw, at)
    return Head(
        exists=bits & 1 != 0,
        continues=bits & 2 != 0,
        granted=bits & 4 != 0,
        held=bits & 8 != 0,
        same=bits & 16 != 0,
        now=int(now),
        version=Version(int(revision), id),
        lease_until=int(until),
        lease_since=int(since),
        waiters=waiters,
        again_ms=again,
        record_tag=tag,
        belongs_to=belongs,
        lease_owner=decode(owner),
        life=packed_life,
        counters=counters,
    )


def _short_string(raw: bytes, at: int) -> tuple[bytes, int]:
    end = at + 1 + raw[at]
    return raw[at + 1 : end], end


def _long_string(raw: bytes, at: int) -> tuple[bytes, int]:
    end = at + 2 + int.from_bytes(raw[at : at + 2])
    return raw[at + 2 : end], end


def unpack_fields(flat: list[bytes]) -> dict[str, bytes]:
    """Record fields from names and values in turn."""
    return {decode(name): value for name, value in pairs(flat)}


def unpack_values(namespaces: list[bytes], found: list[tuple[bytes, bytes]]) -> dict[str, dict[str, bytes]]:
    """Values by namespace; those of `namespaces` are there even if empty."""
    values: dict[str, dict[str, bytes]] = {unescape(raw): {} for raw in namespaces}
    for field, value in found:
        namespace, name = part_of(field)
        values.setdefault(namespace, {})[name] = value
    return values


def pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Names and values in turn, as pairs."""
    return list(zip(flat[::2], flat[1::2], strict=True))


# --------------------------------------------------------------------------------------------------- commit

_EXPECTS, _MUST_EXIST, _HOLDS, _IS_MAINTENANCE, _WAITS = 1, 2, 4, 8, 16
_COMMIT_NUMBERS = struct.Struct(">HHHHH")


def pack_commit(
    names: KeyNames,
    now: int,
    commit: Commit,
    held: Registry | None,
    *,
    elsewhere: bool,
    must_exist: bool,
    waits: bool,
) -> tuple[list[bytes], list[bytes]]:
    """Build the keys and arguments of the script.

    Args:
        names: The session's keys.
        now: The time, or -1: the server's.
        commit: What is to be stored.
        held: What the session is known to have.
        elsewhere: The indexes are not in reach of the script.
        must_exist: It must not make the session.
        waits: The caller waits for replicas.
    """
    belongs = user_id(commit.belongs_to)
    declared = held.belongs_to if held is not None and held.belongs_to else belongs
    if elsewhere:
        declared = ELSEWHERE
    keys = _index_keys(names, declared)
    places = _declare(names, keys, commit, held)

    ops: list[bytes] = []
    argv: list[bytes] = [b""]
    puts = {name: value for name, value in commit.fields.items() if value is not None}
    for name, value in puts.items():
        argv += (b"." + encode(name), value)
    argv += [b"." + encode(name) for name in commit.fields if name not in puts]

    namespaces = _by_namespace(commit.values)
    for namespace, (put, gone) in namespaces.items():
        ops.append(_string(escape(namespace)) + struct.pack(">II", len(put) // 2, len(gone)))
        argv += put
        argv += gone
    for part, log in commit.logs.items():
        pop = min(log.pop, 2**32 - 1)
        ops.append(struct.pack(">HBII", places[b"l" + part_id(part)], log.clear, pop, len(log.append)))
        argv += log.append
    for part, collection in commit.collections.items():
        put = [raw for name, value in collection.entries.items() if value is not None for raw in (encode(name), value)]
        gone = [encode(name) for name, value in collection.entries.items() if value is None]
        prefixes = [encode(prefix) for prefix in collection.delete_prefixes]
        place = places[b"c" + part_id(part)]
        ops.append(struct.pack(">HHII", place, len(prefixes), len(put) // 2, len(gone)))
        argv += prefixes
        argv += put
        argv += gone

    expected = commit.expected
    flags = (_EXPECTS if expected is not None else 0) | (_MUST_EXIST if must_exist else 0)
    flags |= (_HOLDS if commit.hold_ms is not None else 0) | (_IS_MAINTENANCE if commit.maintenance else 0)
    flags |= _WAITS if waits else 0
    revision, commit_id = expected if expected is not None else (0, b"")
    begins = life.pack_beginning(commit) if expected is None or expected == ABSENT else b""
    argv[0] = b"".join(
        (
            struct.pack(">d", now) + commit.id,
            struct.pack(">BdB", flags, revision, len(commit_id)) + commit_id,
            struct.pack(">d", commit.hold_ms or 0),
            *map(_string, (encode(commit.owner), belongs, declared, names.member, names.hashed)),
            *map(_string, (life.pack_counters(commit.counters), begins)),
            life.pack_lifetime(commit.lifetime),
            _COMMIT_NUMBERS.pack(
                len(puts), len(commit.fields) - len(puts), len(namespaces), len(commit.logs), len(commit.collections)
            ),
            *ops,
        )
    )
    return keys, argv


def _index_keys(names: KeyNames, declared: bytes) -> list[bytes]:
    """The main key and the index, with that of a user if one is declared."""
    if declared == ELSEWHERE:
        return [names.main]
    keys = [names.main, names.index]
    return [*keys, names.user_index(declared)] if declared else keys


def all_keys(names: KeyNames, held: Registry | None, declared: bytes) -> list[bytes]:
    """Every key of a session that the registry counts."""
    keys = [*_index_keys(names, declared), names.values]
    if held is None:
        return keys
    keys += [names.log(id) for id, (count, _, _) in held.logs.items() if count]
    for id, (count, _, _) in held.collections.items():
        if count:
            keys.extend(names.collection(id))
    return keys


def _declare(names: KeyNames, keys: list[bytes], commit: Commit, held: Registry | None) -> dict[bytes, int]:
    """Append all parts to `keys`; return the place (from 1) of each, by its letter and id."""
    logs = [part_id(part) for part in commit.logs]
    collections = [part_id(part) for part in commit.collections]
    if held is not None:
        logs += [id for id, (count, _, _) in held.logs.items() if count]
        collections += [id for id, (count, _, _) in held.collections.items() if count]
    places: dict[bytes, int] = {}
    if commit.values or (held is not None and held.has_values):
        keys.append(names.values)
    for id in logs:
        if b"l" + id not in places:
            keys.append(names.log(id))
            places[b"l" + id] = len(keys)
    for id in collections:
        if b"c" + id not in places:
            keys.extend(names.collection(id))
            places[b"c" + id] = len(keys) - 1
    return places


def _by_namespace(values: dict[Part, bytes | None]) -> dict[str, tuple[list[bytes], list[bytes]]]:
    grouped: dict[str, tuple[list[bytes], list[bytes]]] = {}
    for part, value in values.items():
        put, gone = grouped.setdefault(part.namespace, ([], []))
        if value is None:
            gone.append(part_id(part))
        else:
            put += (part_id(part), value)
    return grouped


class StoredHead(NamedTuple):
    """What `commit.lua` answers when it has stored."""

    version: Version
    previous: Version
    row: Row
    previous_tag: bytes
    belongs_to: bytes
    life: bytes


_STORED = struct.Struct(">d")


def unpack_stored(raw: bytes, commit_id: bytes) -> StoredHead:
    """Read the answer."""
    (revision,) = _STORED.unpack_from(raw)
    previous, at = _short_string(raw, _STORED.size)
    tag, at = _short_string(raw, at)
    previous_tag, at = _short_string(raw, at)
    belongs, at = _long_string(raw, at)
    packed_life, at = _long_string(raw, at)
    counters, at = _long_string(raw, at)
    before = Version(int(revision) - 1, previous)
    row = life.row(packed_life, counters, belongs, tag, None)
    return StoredHead(Version(int(revision), commit_id), before, row, previous_tag, belongs, packed_life)


# --------------------------------------------------------------------------------------------------- amend

_EXPECTS_TAG, _IS_ACTIVITY, _IS_END, _HAS_LIFETIME, _HAS_OWN, _HAS_EXPIRY, _AMEND_WAITS = 1, 2, 4, 8, 16, 32, 64


def pack_amend(names: KeyNames, now: int, amend: Amend, declared: bytes, *, waits: bool) -> list[bytes]:
    """The arguments of `amend.lua`."""
    puts = {name: value for name, value in amend.fields.items() if value is not None}
    argv = [b""]
    for name, value in puts.items():
        argv += (b"." + encode(name), value)
    argv += [b"." + encode(name) for name in amend.fields if name not in puts]
    tag = amend.expected_tag
    flags = (_EXPECTS_TAG if tag is not None else 0) | (_IS_ACTIVITY if amend.activity else 0)
    flags |= (_IS_END if amend.end else 0) | (_HAS_LIFETIME if amend.lifetime is not None else 0)
    flags |= (_HAS_OWN if amend.own is not None else 0) | (_HAS_EXPIRY if amend.expires_at is not UNSET else 0)
    flags |= _AMEND_WAITS if waits else 0
    argv[0] = b"".join(
        (
            struct.pack(">d", now) + amend.id,
            bytes((flags, len(tag or b""))) + (tag or b""),
            *map(_string, (declared, names.member, life.pack_counters(amend.counters))),
            _string(life.pack_own(amend.own or {})),
            life.pack_time(None if amend.expires_at is UNSET else amend.expires_at),
            life.pack_lifetime(amend.lifetime or Lifetime()),
            struct.pack(">HH", len(puts), len(amend.fields) - len(puts)),
        )
    )
    return argv


# --------------------------------------------------------------------------------------------------- the small ones


def pack_owner(now: int, owner: str) -> bytes:
    """The argument of `release.lua`."""
    return struct.pack(">d", now) + _string(encode(owner))


def pack_renew(now: int, ms: int, owner: str, declared: bytes, member: bytes) -> bytes:
    """The argument of `renew.lua`."""
    return struct.pack(">dd", now, ms) + _string(encode(owner)) + _string(declared) + _string(member)


def pack_delete(now: int, declared: bytes, belongs_to: bytes, member: bytes, *, waits: bool) -> bytes:
    """The argument of `delete.lua`."""
    return struct.pack(">dB", now, waits) + _string(declared) + _string(belongs_to) + _string(member)


def pack_status(now: int, commit_id: bytes, since: Version) -> bytes:
    """The argument of `status.lua`."""
    head = struct.pack(">d", now) + commit_id
    return head + struct.pack(">dB", since.revision, len(since.commit_id)) + since.commit_id


def pack_now(now: int) -> bytes:
    """The time alone."""
    return struct.pack(">d", now)
