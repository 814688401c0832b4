"""Leases on a service that has no clock.

A lease stands in the record with its owner, its length, and a random number that each renewal changes. Hosts' clocks
only say when it ends, for people; who wants to take it over must have seen it stand unchanged, under the same number,
for its whole length on a clock of its own that nobody sets.
"""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

from msgspec import structs

from agent_sessions.stores.base import Key, Lease, LeaseWanted
from agent_sessions.stores.dynamodb.expiry import DAY, seconds
from agent_sessions.stores.dynamodb.layout.keys import partition
from agent_sessions.stores.dynamodb.layout.records import (
    Change,
    Held,
    Record,
    binary,
    new_lease,
    number,
    read_record,
    runs_out_at,
)
from agent_sessions.stores.dynamodb.memory import Memory
from agent_sessions.stores.dynamodb.service.requests import Item, Refused, Requests
from agent_sessions.stores.dynamodb.times import Times
from agent_sessions.stores.lifetime import Stamps

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
_TRIES = 8
_OBSERVED, _WAITING = 4096, 4096


class _Seen(NamedTuple):
    nonce: bytes
    at: int
    ms: int


class Leases:
    """Takes, renews and gives up leases, and remembers what it has seen of those of others."""

    def __init__(self, requests: Requests, times: Times) -> None:
        self._requests = requests
        self._times = times
        self._seen: Memory[str, _Seen] = Memory(_OBSERVED)
        self._pauses: Memory[str, float] = Memory(_WAITING)

    def observe(self, partition: str, held: Held | None) -> None:
        """Remember since when a lease stands as it does."""
        if held is None:
            self._seen.forget(partition)
        else:
            seen = self._seen.get(partition)
            if seen is None or seen.nonce != held.nonce:
                self._seen.keep(partition, _Seen(held.nonce, self._times.monotonic_ms(), held.ms))

    def dead(self, partition: str) -> bytes | None:
        """The number of the lease that was seen unchanged for its length."""
        seen = self._seen.get(partition)
        return None if seen is None or self._times.monotonic_ms() - seen.at < seen.ms else seen.nonce

    def is_held_by_another(self, partition: str, held: Held | None, owner: str) -> bool:
        """Whether a lease, just read, is in the way."""
        self.observe(partition, held)
        return self.was_held_by_another(partition, held, owner)

    def was_held_by_another(self, partition: str, held: Held | None, owner: str) -> bool:
        """The same of a lease that was read some time ago: it tells nothing of how long the present one stands."""
        return held is not None and held.owner != owner and held.nonce != self.dead(partition)

    async def take(self, key: Key, wanted: LeaseWanted) -> tuple[Record, bool]:
        """Take a lease; return the record, and whether it is ours."""
        place, now = partition(key), self._times.now_ms()
        if wanted.queue:
            # A waiter looks before it writes: a write that is refused costs as much as one that is not, and may get
            # in the way of the holder's commit.
            record = read_record(key, await self._requests.get(place))
            if self.is_held_by_another(place, record.lease, wanted.owner):
                return record, False
        held = new_lease(wanted.owner, wanted.ms, now, now)
        ends = seconds(now + wanted.ms)
        goes_at: int | None = None
        condition, given = "attribute_not_exists(lo)", {}
        if (dead := self.dead(place)) is not None:
            condition, given = f"{condition} OR ln = :dead", {"dead": binary(dead)}
        for _ in range(_TRIES):
            change = Change().lease(held).given(**given)
            if goes_at is None:
                change.stay_for(ends + DAY).given(ends=number(ends))
                stays = "attribute_not_exists(x) OR x > :ends"
            else:  # of what is absent since long: DynamoDB would delete it under the lease
                change.set("x", number(ends + DAY)).given(goes_at=number(goes_at))
                stays = "x = :goes_at"
            try:
                item = await self._requests.update(
                    place, change.expression, change.values, f"({condition}) AND ({stays})"
                )
            except Refused as refused:
                record = read_record(key, refused.item)
                goes_at = _goes_at(refused.item, ends)
            else:
                self.observe(place, held)
                self._pauses.forget(wanted.owner)
                return read_record(key, item), True
            theirs = record.lease
            if self.is_held_by_another(place, theirs, wanted.owner):
                return record, False
            if theirs is None:
                condition, given = "attribute_not_exists(lo)", {}
            else:
                goes_on = theirs.owner == wanted.owner and theirs.until > now
                held = new_lease(wanted.owner, wanted.ms, now, theirs.since if goes_on else now)
                condition, given = "ln = :was", {"was": binary(theirs.nonce)}
        return record, False

    async def renew(self, key: Key, owner: str, ms: int) -> Record | None:
        """Move the end of a lease; None if it is not the owner's."""
        place, now = partition(key), self._times.now_ms()
        held = new_lease(owner, ms, now, now)
        change = Change().given(owner={"S": owner}, now=number(now))
        change.set("ln", binary(held.nonce)).set("lx", number(held.until)).set("lm", number(ms))
        condition = "lo = :owner AND lx > :now"
        # Most often no time of the session is as near as the new end of the lease.
        stays = " AND (g <= :now OR NOT (i < :lx OR e < :lx OR g < :lx))"
        try:
            item = await self._requests.update(place, change.expression, change.values, condition + stays)
        except Refused as refused:
            record = read_record(key, refused.item)
            lease = record.lease
            if lease is None or lease.owner != owner or lease.until <= now:
                return None
            change.times(_prolonged(record, now + ms)).given(ln_was=binary(lease.nonce))
            condition += f" AND ln = :ln_was AND {change.as_found(record)}"
            try:
                item = await self._requests.update(place, change.expression, change.values, condition)
            except Refused:
                return await self.renew(key, owner, ms)
        self.observe(place, held)
        return read_record(key, item)

    async def release(self, key: Key, owner: str) -> Record | None:
        """Give a lease up; None if there is none of this owner."""
        self._pauses.forget(owner)
        place = partition(key)
        change = Change().lease(None).given(owner={"S": owner})
        try:
            item = await self._requests.update(place, change.expression, change.values, "lo = :owner")
        except Refused:
            return None
        self.observe(place, None)
        return read_record(key, item)

    async def unlock(self, key: Key) -> Lease | None:
        """Break a lease; return it if it had not run out."""
        place = partition(key)
        held = read_record(key, await self._requests.get(place)).lease
        if held is None:
            return None
        change = Change().lease(None).given(was=binary(held.nonce))
        try:
            await self._requests.update(place, change.expression, change.values, "ln = :was")
        except Refused as refused:
            if read_record(key, refused.item).lease is not None:
                return await self.unlock(key)  # renewed, or another's: that one is meant
        self.observe(place, None)
        return held.lease if held.until > self._times.now_ms() else None

    async def wait(self, owner: str, seconds: float) -> None:
        """Return when it is time for a waiter to ask again: 100 ms after it began to wait, later each second."""
        pause = self._pauses.get(owner) or _FIRST_PAUSE_S
        self._pauses.keep(owner, min(pause * 2, _LONGEST_PAUSE_S))
        await asyncio.sleep(min(seconds, _LONGEST_PAUSE_S, pause * random.uniform(1, 1.5)))


def _goes_at(item: Item | None, ends: int) -> int | None:
    """When DynamoDB deletes a record, if that is before a lease ends."""
    x = int(item["x"]["N"]) if item is not None and "x" in item else None
    return x if x is not None and x <= ends else None


def _prolonged(record: Record, till: int) -> Record:
    """A record whose lease is renewed: its session neither idles nor goes before, nor goes after its own items."""
    life = record.copy_of_life()
    life.prolong(till)
    if record.stays_until is not None and record.gone_at is not None:
        last = record.stays_until * 1000
        life.stamps = Stamps(*(last if at is None else min(at, last) for at in life.stamps))
    return structs.replace(record, life=life, runs_out_at=runs_out_at(life, record.runs_out_at, till))
