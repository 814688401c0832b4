"""The record: the one item of a session that every turn reads, and every commit writes.

It is kept under 1 KB, since a write costs by the size of the whole item: what may be large lies in items of its own.

| attribute | what it holds |
|---|---|
| `f`, `v`, `c` | data format; revision; the ids of the last 64 commits |
| `l` | what the names of all other items of the life begin with |
| `d` | the parts: namespaces, logs and collections, with where they stand, or what of them has changed lately |
| `s`, `a` | started; last active |
| `i`, `e`, `g` | idle, ended and gone from then on; the first two are left out where they are as the next |
| `w` | a time, not after `e`, from which on it may have run out; only of a session that can, and has not been ended |
| `m`, `y` | record tag; the rest of the life (`Rest`), which each amendment changes |
| `h`, `x` | until when all other items stay at least; the TTL of DynamoDB |
| `z` | 8 bytes, new with each try: the session has an end, and items that may lack a TTL |
| `b`, `n` | to whom the session belongs; tenant and id, where the partition's name is a hash |
| `t`, `u` | keys of the indexes, with `a`, `s` and `w`: tenant's shard, user |
| `lo`, `ln`, `ls`, `lx`, `lm` | lease: owner, a random number for each renewal, since, until, length |
| `st` | what a commit has published and not yet put in its places |
| `pd` | stages that are being filled |
| `gb` | ranges of items that nobody can reach any more |
| `dm` | the last minute's deletions, each with its answer |

All but the lease and the last three go with the life. What leads to the record from the listing of its user (`a`, `n`,
`u`, and a `g` that is `DELETED`) goes when all items of the life are swept.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
from msgspec import Struct, field, structs

from agent_sessions.errors import FormatTooNewError, StateLostError
from agent_sessions.stores.base import FORMAT, Discreet, Key, Lease, LogHead, Part, Row, Version
from agent_sessions.stores.commit_ring import CommitRing
from agent_sessions.stores.dynamodb.layout import keys
from agent_sessions.stores.dynamodb.layout.keys import Names
from agent_sessions.stores.dynamodb.layout.parts import Changes, Parts, decode_changes, encode
from agent_sessions.stores.dynamodb.service.requests import Item
from agent_sessions.stores.life import Life
from agent_sessions.stores.lifetime import Course, Lifetime, Stamps

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

    names: Names = Names(b"")
    commits: CommitRing = field(default_factory=CommitRing)
    parts: Parts = field(default_factory=Parts)
    """All of them, once the directory is read; else what the record itself says."""
    changes: Changes = field(default_factory=Changes)
    directory: Parts | None = None
    """The parts as they were when the directory was written; None: not read, or there is none."""
    life: Life | None = None
    rest: bytes = b""
    """`Rest`, as it is stored."""
    fields_tag: bytes = b""
    """The id of the write that the item with the record's fields is of."""
    runs_out_at: int | None = None
    """The time under which it is in the index of what may have run out."""
    stays_until: int | None = None
    """Seconds until which no other item of the life goes; None: for ever, as the session does."""
    unstamped: bytes | None = None
    """Not None: the session has an end, but some of its items may have no TTL yet. Then the record has none either."""
    lease: Held | None = None
    stage: bytes | None = None
    pending: frozenset[bytes] = frozenset()
    garbage: frozenset[bytes] = frozenset()
    deletions: bytes = b""

    def is_live(self, now: int) -> bool:
        """Whether the key exists."""
        return self.life is not None and not self.life.is_over(now)

    @property
    def gone_at(self) -> int | None:
        """From when on it does not."""
        return None if self.life is None else self.life.stamps.gone_at

    @property
    def goes_at(self) -> int:
        """The TTL of the record itself, in seconds."""
        if self.gone_at is None or self.stays_until is None or self.unstamped is not None:
            return NEVER
        return self.stays_until + _TO_SWEEP_FIRST

    @property
    def record_tag(self) -> bytes:
        """The id of the last write that changed what is known of the key, but for its times and counters."""
        return b"" if self.life is None else self.life.record_tag

    def copy_of_life(self) -> Life:
        """Its life, to be changed."""
        assert self.life is not None
        return structs.replace(self.life, counters=self.life.counters.copy())

    def has_write(self, write_id: bytes) -> bool:
        """Whether it remembers a commit or an amendment."""
        return self.commits.find(write_id) is not None or (self.life is not None and write_id in self.life.amendments)

    @property
    def moment(self) -> tuple[Names, Version, bytes]:
        """What is different after each write that changes an item beside the record."""
        return self.names, self.commits.version, self.fields_tag

    @property
    def is_whole(self) -> bool:
        """Whether all parts are known."""
        return self.directory is not None or not self.changes.directory

    def with_directory(self, directory: Parts) -> Record:
        """The same, with all parts."""
        return structs.replace(self, directory=directory, parts=self.changes.onto(directory))

    def row(self, fields: dict[str, bytes] | None) -> Row:
        """For the caller."""
        assert self.life is not None
        return self.life.row(fields)

    def heads(self) -> dict[Part, LogHead]:
        """Where all logs stand."""
        return {self.parts.part(log): log.head for log in self.parts.logs}

    def filled_collections(self) -> dict[Part, int]:
        """The collections that have entries, with the revision that last changed them."""
        return {self.parts.part(kept): kept.revision for kept in self.parts.collections if kept.revision}


NOTHING = Record()


class Rest(Discreet, Struct, array_like=True, frozen=True):
    """What a record keeps of a life beside what it is found by."""

    lifetime: Lifetime
    own: dict[str, int | None]
    ended_at: int | None
    expires_at: int | None
    counters: dict[str, int]
    amendments: bytes
    """The ids of the last ones, 8 bytes each."""
    fields_tag: bytes
    """Empty if it is the record's."""


_rest_decoder = msgspec.msgpack.Decoder(Rest)


def encode_rest(life: Life, fields_tag: bytes) -> bytes:
    """As it is stored."""
    return msgspec.msgpack.encode(
        Rest(
            life.lifetime,
            life.own,
            life.course.ended_at,
            life.course.expires_at,
            life.counters,
            b"".join(life.amendments),
            b"" if fields_tag == life.record_tag else fields_tag,
        )
    )


_TO_SWEEP_FIRST = 7 * 86_400
"""Seconds that a record stays after everything else of its session."""
_PARTS_TOO_EARLY = 24
"""Of the time that a session has left, this part is how much too early it may be in the index of what may run out."""
DELETED = 0
"""When a session that was deleted is gone. Nothing else goes by then: so a listing finds what of it is not swept."""
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
    rest = _rest_decoder.decode(item["y"]["B"])
    life = _read_life(item, rest)
    return Record(
        names=Names(item["l"]["B"]),
        commits=CommitRing(item["c"]["B"], int(item["v"]["N"])),
        parts=Parts(has_fields=changes.has_fields) if changes.directory else changes.onto(Parts()),
        changes=changes,
        life=life,
        rest=item["y"]["B"],
        fields_tag=rest.fields_tag or life.record_tag,
        runs_out_at=_int(item, "w"),
        stays_until=_int(item, "h"),
        unstamped=_bytes(item, "z"),
        stage=_bytes(item, "st"),
        **common,
    )


def _read_life(item: Item, rest: Rest) -> Life:
    gone_at = _int(item, "g")
    ends_at = int(item["e"]["N"]) if "e" in item else gone_at
    idle_at = int(item["i"]["N"]) if "i" in item else ends_at
    return Life(
        course=Course(int(item["s"]["N"]), int(item["a"]["N"]), rest.ended_at, rest.expires_at),
        stamps=Stamps(idle_at, ends_at, gone_at),
        lifetime=rest.lifetime,
        own=rest.own,
        record_tag=item["m"]["B"],
        belongs_to=item["b"]["S"] if "b" in item else None,
        counters=rest.counters,
        amendments=[rest.amendments[at : at + 8] for at in range(0, len(rest.amendments), 8)],
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

    def write(self, key: Key, record: Record) -> Change:
        """Everything of a record that goes with its life, but for its times and the stage."""
        life = record.life
        assert life is not None
        self.set("f", number(FORMAT)).set("l", binary(record.names.id))
        self.set("v", number(record.commits.revision)).set("c", binary(record.commits.ids))
        self.set("s", number(life.course.started_at)).set("t", {"S": keys.tenant_shard(key)})
        user = life.belongs_to
        self.set("b", None if user is None else {"S": user})
        self.set("u", None if user is None else {"S": keys.user_index(key.tenant, key.kind, user)})
        spelt = keys.spelt_out(key)
        if spelt is not None:
            self.set("n", binary(msgspec.msgpack.encode(spelt)))
        return self.write_record(record)

    def write_record(self, record: Record) -> Change:
        """What an amendment may change, but for the times."""
        life = record.life
        assert life is not None
        self.set("d", binary(encode(record.changes)))
        self.set("m", binary(life.record_tag)).set("y", binary(record.rest))
        self.set("a", number(life.course.active_at)).set("h", optional(record.stays_until))
        self.set("z", None if record.unstamped is None else binary(record.unstamped))
        return self.set("x", number(record.goes_at))

    def times(self, record: Record) -> Change:
        """When it idles, ends, and goes."""
        assert record.life is not None
        idle_at, ends_at, gone_at = record.life.stamps
        self.set("i", None if idle_at == ends_at else optional(idle_at))
        self.set("e", None if ends_at == gone_at else optional(ends_at))
        return self.set("g", optional(gone_at)).set("w", optional(record.runs_out_at))

    def as_found(self, record: Record) -> str:
        """The condition that nobody has committed or amended, or begun to change its items' TTL, since it was read.

        A commit that is sent again after its session's time makes one of the same id, but of another life.
        """
        self.given(life_was=binary(record.names.id), was=binary(record.commits.ids), rest_was=binary(record.rest))
        condition = "l = :life_was AND c = :was AND y = :rest_was"
        if record.unstamped is None:
            return f"{condition} AND attribute_not_exists(z)"
        self.given(z_was=binary(record.unstamped))
        return f"{condition} AND z = :z_was"

    def end_life(self) -> Change:
        """Take the life out of the record: the key is absent then. Its user's listing still leads to it."""
        self.remove("f", "v", "c", "l", "d", "s", "i", "e", "w", "m", "y", "h", "z", "b", "t", "st")
        return self.set("g", number(DELETED))

    def forget_life(self) -> Change:
        """Take the rest out, when nothing of the life is left."""
        return self.remove("a", "g", "n", "u")

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


def runs_out_at(life: Life, known: int | None, now: int) -> int | None:
    """Under which time a session belongs into the index of what may have run out; None: it does not.

    A time that is there already and not much too early will do: to write another with every turn would cost as much as
    the other indexes do. Who comes by there too early, moves it on.
    """
    ends_at, gone_at = life.stamps.ends_at, life.stamps.gone_at
    if life.course.ended_at is not None or ends_at is None or ends_at == gone_at:
        return None
    will_do = known is not None and now < known <= ends_at < known + (ends_at - now) / _PARTS_TOO_EARLY
    return known if will_do else ends_at


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
