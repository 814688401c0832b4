"""The record: the one item of a session that every turn reads, and every commit writes.

It is kept under 1 KB, since a write costs by the size of the whole item: what may be large lies in items of its own.

| attribute | what it holds |
|---|---|
| `f`, `v`, `c` | data format; revision; the ids of the last 64 commits |
| `l` | the life: what the names of all other items begin with |
| `d` | the parts: namespaces, logs and collections, with where they stand, or what of them has changed lately |
| `s`, `g`, `h`, `x` | started; gone from then on; until when all other items stay at least; the TTL of DynamoDB |
| `m`, `b`, `n` | record tag; to whom the session belongs; tenant and id, where the partition's name is a hash |
| `a`, `t`, `u` | keys of the indexes: place (last activity, id), tenant's shard, user |
| `lo`, `ln`, `ls`, `lx`, `lm` | lease: owner, a random number for each renewal, since, until, length |
| `st` | what a commit has published and not yet put in its places |
| `pd` | stages that are being filled |
| `gb` | ranges of items that nobody can reach any more |
| `dm` | the last minute's deletions, each with its answer |

All but the lease and the last three go with the life.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
from msgspec import Struct, field, structs

from agent_sessions.errors import FormatTooNewError, StateLostError
from agent_sessions.stores.base import FORMAT, Cursor, Discreet, Key, Lease, LogHead, Part, Row
from agent_sessions.stores.commit_ring import CommitRing
from agent_sessions.stores.dynamodb.layout import keys
from agent_sessions.stores.dynamodb.layout.keys import Life
from agent_sessions.stores.dynamodb.layout.parts import Changes, Parts, decode_changes, encode
from agent_sessions.stores.dynamodb.service.requests import Item

# --------------------------------------------------------------------------------------------------- the record


class Held(Discreet, Struct, frozen=True):
    """A lease as it stands in the record, run out or not."""

    owner: str
    nonce: bytes
    since: int
    until: int
    ms: int

    @property
    def lease(self) -> Lease:
        """For the caller."""
        return Lease(self.owner, self.since, self.until)


class Record(Discreet, Struct, frozen=True):
    """A record. Without a life it is of an absent key, and holds a lease, or what is left to sweep."""

    life: Life = Life(b"")
    commits: CommitRing = field(default_factory=CommitRing)
    parts: Parts = field(default_factory=Parts)
    """All of them, once the directory is read; else what the record itself says."""
    changes: Changes = field(default_factory=Changes)
    directory: Parts | None = None
    """The parts as they were when the directory was written; None: not read, or there is none."""
    started_at: int = 0
    active_at: int = 0
    gone_at: int | None = None
    stays_until: int | None = None
    """Seconds until which no other item of the life goes; None: for ever."""
    record_tag: bytes = b""
    belongs_to: str | None = None
    lease: Held | None = None
    stage: bytes | None = None
    pending: frozenset[bytes] = frozenset()
    garbage: frozenset[bytes] = frozenset()
    deletions: bytes = b""

    def is_live(self, now: int) -> bool:
        """Whether the key exists."""
        return bool(self.life.id) and (self.gone_at is None or self.gone_at > now)

    @property
    def is_whole(self) -> bool:
        """Whether all parts are known."""
        return self.directory is not None or not self.changes.directory

    def with_directory(self, directory: Parts) -> Record:
        """The same, with all parts."""
        return structs.replace(self, directory=directory, parts=self.changes.onto(directory))

    def row(self, fields: dict[str, bytes] | None) -> Row:
        """For the caller."""
        return Row(self.started_at, self.active_at, self.gone_at, self.belongs_to, self.record_tag, fields)

    def heads(self) -> dict[Part, LogHead]:
        """Where all logs stand."""
        return {self.parts.part(log): log.head for log in self.parts.logs}

    def filled_collections(self) -> dict[Part, int]:
        """The collections that have entries, with the revision that last changed them."""
        return {self.parts.part(kept): kept.revision for kept in self.parts.collections if kept.revision}


NOTHING = Record()

_TO_SWEEP_FIRST = 7 * 86_400
"""Seconds that a record stays after everything else of its session."""
NEVER = 253_402_300_799
"""The TTL of a record that is to stay, the end of the year 9999. None is without one, so setting one needs no look."""


def read_record(key: Key, item: Item | None) -> Record:
    """The record in an item.

    Raises:
        FormatTooNewError: It was written by a newer version.
    """
    if item is None:
        return NOTHING
    format = _int(item, "f")
    if format is not None and format > FORMAT:
        raise FormatTooNewError(
            f"{key.kind} {key.id!r} has format {format}, this version of agent-sessions reads up to {FORMAT}"
        )
    common: dict[str, Any] = {
        "lease": _lease(item),
        "pending": _set(item, "pd"),
        "garbage": _set(item, "gb"),
        "deletions": _bytes(item, "dm") or b"",
    }
    if "c" not in item:
        return Record(**common)
    changes = decode_changes(item["d"]["B"])
    return Record(
        life=Life(item["l"]["B"]),
        commits=CommitRing(item["c"]["B"], int(item["v"]["N"])),
        parts=Parts(has_fields=changes.has_fields) if changes.directory else changes.onto(Parts()),
        changes=changes,
        started_at=int(item["s"]["N"]),
        active_at=keys.active_at(item["a"]["B"]),
        gone_at=_int(item, "g"),
        stays_until=_int(item, "h"),
        record_tag=item["m"]["B"],
        belongs_to=item["b"]["S"] if "b" in item else None,
        stage=_bytes(item, "st"),
        **common,
    )


class Change:
    """An update expression in the making."""

    def __init__(self) -> None:
        self.values: Item = {}
        self._clauses: dict[str, list[str]] = {"SET": [], "REMOVE": [], "ADD": [], "DELETE": []}

    @property
    def expression(self) -> str:
        """What the service wants."""
        return " ".join(f"{verb} {', '.join(terms)}" for verb, terms in self._clauses.items() if terms)

    def set(self, name: str, value: Item | None) -> Change:
        """Give an attribute a value; None takes it away."""
        if value is None:
            return self.remove(name)
        self.values[f":{name}"] = value
        self._clauses["SET"].append(f"{name} = :{name}")
        return self

    def remove(self, *names: str) -> Change:
        """Take attributes away."""
        self._clauses["REMOVE"] += names
        return self

    def add(self, name: str, elements: frozenset[bytes]) -> Change:
        """Put elements into a set."""
        return self._elements("ADD", name, elements)

    def discard(self, name: str, elements: frozenset[bytes]) -> Change:
        """Take elements out of a set."""
        return self._elements("DELETE", name, elements)

    def given(self, **values: Item) -> Change:
        """Values that the condition names."""
        self.values.update({f":{name}": value for name, value in values.items()})
        return self

    def _elements(self, verb: str, name: str, elements: frozenset[bytes]) -> Change:
        if elements:
            self.values[f":{name}"] = {"BS": sorted(elements)}
            self._clauses[verb].append(f"{name} :{name}")
        return self

    # ------------------------------------------------------------------------------------------------- of a record

    def write(self, key: Key, record: Record, *, moves_the_end: bool = True) -> Change:
        """Everything of a record that goes with its life, but for the stage."""
        user = record.belongs_to
        if moves_the_end:
            self.set("g", optional(record.gone_at))
        self.set("f", number(FORMAT))
        self.set("v", number(record.commits.revision)).set("c", binary(record.commits.ids))
        self.set("l", binary(record.life.id)).set("d", binary(encode(record.changes)))
        self.set("s", number(record.started_at)).set("h", optional(record.stays_until))
        self.set("m", binary(record.record_tag))
        stays_until = None if record.gone_at is None else record.stays_until
        self.set("x", number(NEVER if stays_until is None else stays_until + _TO_SWEEP_FIRST))
        self.set("b", None if user is None else {"S": user})
        self.set("a", binary(keys.place(Cursor(record.active_at, key.id))))
        self.set("t", {"S": keys.tenant_shard(key)})
        self.set("u", None if user is None else {"S": keys.user_index(key.tenant, key.kind, user)})
        spelt = keys.spelt_out(key)
        return self if spelt is None else self.set("n", binary(msgspec.msgpack.encode(spelt)))

    def end_life(self) -> Change:
        """The reverse: the key is absent then."""
        return self.remove("f", "v", "c", "l", "d", "s", "g", "h", "m", "b", "a", "t", "u", "n", "st")

    def lease(self, held: Held | None) -> Change:
        """The lease."""
        if held is None:
            return self.remove("lo", "ln", "ls", "lx", "lm")
        self.set("lo", {"S": held.owner}).set("ln", binary(held.nonce))
        return self.set("ls", number(held.since)).set("lx", number(held.until)).set("lm", number(held.ms))

    def stay_for(self, seconds: int) -> Change:
        """Let a record that has no TTL yet (a lease on what is absent) be swept at this time."""
        self.values[":x"] = number(seconds)
        self._clauses["SET"].append("x = if_not_exists(x, :x)")
        return self


class Deletion(Discreet, Struct, array_like=True, frozen=True):
    """The answer to a delete, for those who repeat it."""

    write_id: bytes
    until: int
    existed: bool


_deletions_decoder = msgspec.msgpack.Decoder(list[Deletion])


def remembered(deletions: bytes, now: int) -> list[Deletion]:
    """The deletions that are not to be forgotten yet."""
    if not deletions:
        return []
    return [deletion for deletion in _deletions_decoder.decode(deletions) if deletion.until > now]


def new_lease(owner: str, ms: int, now: int, since: int) -> Held:
    """A lease, taken or renewed now."""
    return Held(owner, os.urandom(8), since, now + ms, ms)


def name_of(key: Key) -> str:
    """A key, for people."""
    return f"{key.kind} {key.id!r} of tenant {key.tenant!r}"


def state_lost(key: Key) -> StateLostError:
    """What a record names is not there."""
    return StateLostError(
        f"a part of {name_of(key)} that its record counts is no longer in the table (deleted by hand, or by another "
        "program's TTL)"
    )


# --------------------------------------------------------------------------------------------------- attributes


def number(value: int) -> Item:
    """A number, for the service."""
    return {"N": str(value)}


def optional(value: int | None) -> Item | None:
    """A number that may be missing."""
    return None if value is None else number(value)


def binary(value: bytes) -> Item:
    """Bytes, for the service."""
    return {"B": value}


def _int(item: Item, name: str) -> int | None:
    return int(item[name]["N"]) if name in item else None


def _bytes(item: Item, name: str) -> bytes | None:
    return item[name]["B"] if name in item else None


def _set(item: Item, name: str) -> frozenset[bytes]:
    return frozenset(item[name]["BS"]) if name in item else frozenset()


def _lease(item: Item) -> Held | None:
    if "lo" not in item:
        return None
    since, until, ms = (int(item[name]["N"]) for name in ("ls", "lx", "lm"))
    return Held(item["lo"]["S"], item["ln"]["B"], since, until, ms)
