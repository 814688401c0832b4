"""What a commit changes: a new record, and the items to put and to delete."""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field

from agent_sessions.errors import CommitTooLargeError
from agent_sessions.stores.base import CollectionChange, Commit, Discreet, Key, LogChange, LogHead, Part
from agent_sessions.stores.commit_ring import CommitRing
from agent_sessions.stores.dynamodb.expiry import Kept, expiry_of, sooner, unstamped
from agent_sessions.stores.dynamodb.layout.keys import Names, Span
from agent_sessions.stores.dynamodb.layout.parts import MOST_IN_RECORD, Changes, Parts, encode
from agent_sessions.stores.dynamodb.layout.payloads import PIECE_BYTES, Large, Pieces, large_of, with_expiry
from agent_sessions.stores.dynamodb.layout.records import (
    NOTHING,
    Change,
    Held,
    Record,
    binary,
    encode_rest,
    name_of,
    new_lease,
    number,
    runs_out_at,
)
from agent_sessions.stores.dynamodb.reading import Reader
from agent_sessions.stores.dynamodb.service.requests import MOST_BYTES, Item, Requests
from agent_sessions.stores.life import Life

MOST_WRITES = 99
"""The most items of a transaction, without the record."""

_LARGE_BYTES = (PIECE_BYTES, 16_384, 4_096)
"""Payloads above the first go into pieces; those above the others, where a commit has more than one request takes."""

_MOST_PARTS_BYTES = 1_000_000


class Op(Discreet, Struct, array_like=True):
    """An item to put, or, without data, to delete."""

    sort_key: bytes
    data: bytes | None = None
    large: bytes | None = None
    """Where the data is instead: `Large`, encoded."""
    numbers: dict[str, int] = field(default_factory=dict)
    tag: bytes | None = None

    def write(self, partition: str, expires: int | None) -> Item:
        """As a write of a transaction."""
        item: Item = {"p": {"S": partition}, "k": {"B": self.sort_key}}
        if self.data is None and self.large is None:
            return {"Delete": {"Key": item}}
        item |= {name: {"N": str(value)} for name, value in self.numbers.items()}
        if self.tag is not None:
            item["m"] = {"B": self.tag}
        if self.large is not None:
            item["o"] = {"B": self.large}
        else:
            item["b"] = {"B": self.data}
        return {"Put": {"Item": with_expiry(item, expires)}}


class Plan(Discreet, Struct):
    """A commit or an amendment, worked out for the record that was found."""

    found: Record
    record: Record
    ops: list[Op]
    pieces: Pieces
    expires: int | None
    garbage: frozenset[bytes]
    heads: dict[Part, LogHead]

    @property
    def is_staged(self) -> bool:
        """Whether it is more than a transaction takes."""
        return len(self.ops) > MOST_WRITES or sum(len(op.data or b"") for op in self.ops) > MOST_BYTES


class Update(NamedTuple):
    """What becomes of the record, and the condition under which."""

    id: bytes
    """That of the commit or the amendment."""
    change: Change
    condition: str
    given: dict[str, Item]
    """The values that the condition names."""

    @classmethod
    def of_commit(cls, key: Key, plan: Plan, commit: Commit, now: int, dead_lease: bytes | None) -> Update:
        """The record is as it was found, its session has neither ended nor gone, and no lease of others is in the way.

        Maintenance, which is no activity, leaves the times as they are by then.
        """
        change = Change().write(key, plan.record).lease(plan.record.lease)
        if not commit.maintenance or commit.hold_ms is not None:
            change.times(plan.record)
        found = Change().given(owner={"S": commit.owner})
        free = "attribute_not_exists(lo) OR lo = :owner"
        if dead_lease is not None:
            free += " OR ln = :dead"
            found.given(dead=binary(dead_lease))
        if plan.found.life is None:
            return cls(commit.id, change, f"attribute_not_exists(c) AND ({free})", found.values)
        condition = f"{found.as_found(plan.found)} AND ({free})"
        found.given(now=number(now))
        if not plan.found.is_live(now):
            return cls(commit.id, change, f"{condition} AND g <= :now", found.values)
        condition += " AND attribute_not_exists(st) AND (attribute_not_exists(g) OR g > :now)"
        if not commit.maintenance:
            condition += " AND (attribute_not_exists(e) OR e > :now)"
        return cls(commit.id, change, condition, found.values)


def garbage(span: Span, not_before: int = 0) -> bytes:
    """A range of items that nobody can reach any more, to be swept; not before a time, if somebody may be reading."""
    return msgspec.msgpack.encode([*span, not_before])


class Planner:
    """Works a commit out."""

    def __init__(self, requests: Requests, partition: str, key: Key, found: Record, commit: Commit, now: int) -> None:
        self._requests = requests
        self._partition = partition
        self._key = key
        self._found = found
        self._commit = commit
        self._now = now
        self._old = found if found.is_live(now) else NOTHING
        self._reader = Reader(requests, partition, self._old)
        # Not the commit's id: one that is sent again after a deletion would meet the items of its first life.
        self._names = self._old.names if self._old.names.id else Names(os.urandom(8))
        self.life = Life.begun(commit, now) if self._old.life is None else self._old.copy_of_life()
        """That of the key, after the commit."""
        self.life.commit(commit, now)
        self._parts = self._old.parts.copy()
        self._revision = self._old.commits.revision + 1
        self._pieces = Pieces(self._names, os.urandom(8))
        self._ops: dict[bytes, Op] = {}
        self._garbage = set[bytes]()
        if self._old is NOTHING and found.names.id:
            self._garbage.add(garbage(found.names.everything))  # of a life that is past its end
        self._heads: dict[Part, LogHead] = {}

    async def plan(self, kept: Kept) -> Plan:
        """The commit as a plan.

        Args:
            kept: The record as it is by now, and until when all items that there are stay.

        Raises:
            CommitTooLargeError: The session has too many parts.
            Torn: The record was changed meanwhile.
        """
        commit = self._commit
        self._put_values(commit.values, await self._large_values(commit))
        for part, log in commit.logs.items():
            self._heads[part] = await self._change_log(part, log)
        for part, collection in commit.collections.items():
            await self._change_collection(part, collection)
        if commit.fields:
            await self._change_fields()
        self._cut()
        changes, directory = self._settle()
        expires = expiry_of(self.life.stamps.gone_at, self._now)
        fields_tag = commit.id if commit.fields or self._old is NOTHING else self._old.fields_tag
        record = Record(
            names=self._names,
            commits=self._commits(),
            parts=self._parts,
            changes=changes,
            directory=directory,
            life=self.life,
            rest=encode_rest(self.life, fields_tag),
            fields_tag=fields_tag,
            runs_out_at=runs_out_at(self.life, self._old.runs_out_at, self._now),
            stays_until=sooner(kept.stays_until, expires),
            unstamped=unstamped(self._old, self.life.stamps.gone_at, commit.id),
            lease=self._lease(),
            pending=self._found.pending,
            garbage=self._found.garbage | self._garbage,
            deletions=self._found.deletions,
        )
        return Plan(
            kept.record, record, list(self._ops.values()), self._pieces, expires, frozenset(self._garbage), self._heads
        )

    def _commits(self) -> CommitRing:
        ring = CommitRing(self._old.commits.ids, self._old.commits.revision)
        ring.add(self._commit.id)
        return ring

    def _lease(self) -> Held | None:
        commit, held = self._commit, self._found.lease
        if commit.hold_ms is None:
            return None
        goes_on = held is not None and held.owner == commit.owner and held.until > self._now
        return new_lease(commit.owner, commit.hold_ms, self._now, held.since if goes_on and held else self._now)

    # ------------------------------------------------------------------------------------------------- values

    def _put_values(self, values: dict[Part, bytes | None], large: dict[bytes, Large]) -> None:
        for part, data in values.items():
            known = self._parts.namespace(part.namespace)
            if data is None and (known is None or not self._parts.namespaces[known].revision):
                continue
            number = self._parts.ensure_namespace(part.namespace)
            self._parts.namespaces[number].revision = self._revision
            self._put(self._names.value(number, part.name), data, large, r=self._revision)

    async def _large_values(self, commit: Commit) -> dict[bytes, Large]:
        """Those of the values about to be replaced that lie in pieces."""
        numbers = {part: self._old.parts.namespace(part.namespace) for part in commit.values}
        return await self._large(
            [
                self._names.value(number, part.name)
                for part, number in numbers.items()
                if number is not None and self._old.parts.namespaces[number].has_large
            ]
        )

    async def _large(self, sort_keys: list[bytes]) -> dict[bytes, Large]:
        found = await self._requests.get_all([(self._partition, sort_key) for sort_key in sort_keys], only="o")
        return {sort_key: ref for (_, sort_key), item in found.items() if (ref := large_of(item)) is not None}

    def _put(self, sort_key: bytes, data: bytes | None, large: dict[bytes, Large], **numbers: int) -> None:
        """Put an item, or delete it, and leave what it had in pieces to the sweep."""
        self._ops[sort_key] = Op(sort_key, data, numbers=numbers)
        ref = large.get(sort_key)
        if ref is not None:
            self._garbage.add(garbage(self._names.pieces(ref.stage, ref.first, ref.count)))

    # ------------------------------------------------------------------------------------------------- logs

    async def _change_log(self, part: Part, change: LogChange) -> LogHead:
        known = self._parts.log(part)
        if known is None and not change.append:
            return LogHead(0, 0)
        number = self._parts.ensure_log(part)
        log = self._parts.logs[number]
        kept = 0 if change.clear else max(0, log.count - change.pop)
        if kept < log.count:
            await self._cut_log(number, kept)
        if change.append:
            first = log.assigned + 1
            self._put(
                self._names.frame(number, self._revision),
                msgspec.msgpack.encode(change.append),
                {},
                i=log.count,
                q=first,
                n=len(change.append),
            )
            log.count += len(change.append)
            log.last = log.assigned = log.assigned + len(change.append)
        return log.head

    async def _cut_log(self, number: int, kept: int) -> None:
        log = self._parts.logs[number]
        if kept:
            oldest = await self._reader.frame_at(number, kept - 1)
            log.last = oldest.number + kept - 1 - oldest.at
            first_dead = oldest.revision + 1
        else:
            log.last, log.first_frame = 0, self._revision
            first_dead = 0
        if first_dead < self._revision:
            self._garbage.add(garbage(self._names.frames(number, first_dead, self._revision - 1)))
        log.count, log.cut_at = kept, self._revision

    # ------------------------------------------------------------------------------------------------- collections

    async def _change_collection(self, part: Part, change: CollectionChange) -> None:
        known = self._parts.collection(part)
        was_filled = known is not None and self._parts.collections[known].revision > 0
        puts = {key: data for key, data in change.entries.items() if data is not None}
        if not puts and not was_filled:
            return
        number = self._parts.ensure_collection(part)
        collection = self._parts.collections[number]
        entries = {self._names.entry(number, key): data for key, data in change.entries.items()}
        large: dict[bytes, Large] = {}
        if was_filled:
            for prefix in change.delete_prefixes:
                found = await self._requests.query_all(
                    self._partition, self._names.entries(number, prefix), only="k, o"
                )
                for item in found:
                    entries.setdefault(item["k"]["B"], None)
                    if (ref := large_of(item)) is not None:
                        large[item["k"]["B"]] = ref
            if collection.has_large:
                large |= await self._large([sort_key for sort_key in entries if sort_key not in large])
            if not puts and not await self._any_left(number, set(entries)):
                collection.revision = 0
        for sort_key, data in entries.items():
            if data is not None or was_filled:
                self._put(sort_key, data, large, r=self._revision)
        if puts or collection.revision:
            collection.revision = self._revision

    async def _any_left(self, number: int, deleted: set[bytes]) -> bool:
        """Whether a collection has other entries than these: of one more than these, one must be another."""
        limit = min(len(deleted) + 1, 1000)
        found = self._requests.query(self._partition, self._names.entries(number), limit=limit, only="k")
        async with aclosing(found) as pages:
            async for page in pages:
                if any(item["k"]["B"] not in deleted for item in page):
                    return True
        return False

    # ------------------------------------------------------------------------------------------------- fields

    async def _change_fields(self) -> None:
        fields = await self._reader.fields()
        large = await self._large([self._names.fields]) if self._old.parts.has_large_fields else {}
        for name, data in self._commit.fields.items():
            if data is None:
                fields.pop(name, None)
            else:
                fields[name] = data
        self._put(self._names.fields, msgspec.msgpack.encode(fields), large)
        self._ops[self._names.fields].tag = self._commit.id
        self._parts.has_fields, self._parts.has_large_fields = True, False

    # ------------------------------------------------------------------------------------------------- parts

    def _settle(self) -> tuple[Changes, Parts | None]:
        """What the record says of the parts, and the directory under it; a new one if the record would say too much."""
        old = self._old.changes.directory
        changes = Changes.between(self._old.directory or Parts(), self._parts, old)
        if len(encode(changes)) <= MOST_IN_RECORD:
            return changes, self._old.directory
        data = encode(self._parts)
        if len(data) > _MOST_PARTS_BYTES:
            message = f"{name_of(self._key)} would have more namespaces, logs and collections than can be kept"
            raise CommitTooLargeError(message)
        if old:
            sort_key = self._names.directory(old)
            self._garbage.add(garbage((sort_key, sort_key)))
        sort_key = self._names.directory(self._revision)
        is_small = len(data) <= _LARGE_BYTES[1]
        self._ops[sort_key] = Op(sort_key, data) if is_small else Op(sort_key, large=self._pieces.put(data))
        return Changes.between(self._parts, self._parts, self._revision), self._parts

    # ------------------------------------------------------------------------------------------------- sizes

    def _cut(self) -> None:
        """Move into pieces what an item can't hold, and, of a commit that a transaction can't, all but the small."""
        for above in _LARGE_BYTES:
            for sort_key, op in self._ops.items():
                if op.data is not None and len(op.data) > above:
                    op.large, op.data = self._pieces.put(op.data), None
                    self._mark(sort_key)
            if sum(len(op.data or b"") for op in self._ops.values()) <= MOST_BYTES:
                break

    def _mark(self, sort_key: bytes) -> None:
        """Say of a namespace or a collection that something in it lies in pieces: who replaces it must look."""
        kind, number = sort_key[8:9], int.from_bytes(sort_key[9:13])
        if kind == b"T":
            self._parts.has_large_fields = True
        marked: Any = {b"V": self._parts.namespaces, b"C": self._parts.collections}.get(kind)
        if marked is not None:
            marked[number].has_large = True
