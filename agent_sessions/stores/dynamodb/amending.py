"""Amendments: changes of a record alone, beside commits.

An amendment is one conditional write of the record, or a transaction if it changes fields, which lie in an item of
their own. Its condition is that nobody has committed or amended since the record was read. A commit's is the same, so
each sees the other: whoever comes second is refused, with the record as it is, and works on that.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack

import msgspec
from msgspec import structs

from agent_sessions.errors import SessionError, SessionNotFoundError, StoreUnavailableError
from agent_sessions.stores.base import Amend, Amended, Key
from agent_sessions.stores.dynamodb.expiry import expiry_of, keep_alive, sooner, unstamped
from agent_sessions.stores.dynamodb.layout.keys import partition
from agent_sessions.stores.dynamodb.layout.payloads import PIECE_BYTES, Pieces, Torn, large_of
from agent_sessions.stores.dynamodb.layout.records import (
    Change,
    Record,
    binary,
    encode_rest,
    name_of,
    number,
    optional,
    read_record,
    runs_out_at,
    state_lost,
)
from agent_sessions.stores.dynamodb.memory import Records
from agent_sessions.stores.dynamodb.reading import Reader
from agent_sessions.stores.dynamodb.service.requests import Item, Refused, Requests
from agent_sessions.stores.dynamodb.staging import Stages
from agent_sessions.stores.dynamodb.times import Times
from agent_sessions.stores.dynamodb.writing import Op, Plan, Update, garbage
from agent_sessions.stores.life import Life


class Amendments:
    """Amends records."""

    def __init__(self, requests: Requests, times: Times, stages: Stages, records: Records, patience_s: float) -> None:
        self._requests = requests
        self._times = times
        self._stages = stages
        self._records = records
        self._patience_s = patience_s

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """See `Store.amend`."""
        if len(amend.id) != 8:
            raise ValueError("an amendment's id has 8 bytes")
        async with AsyncExitStack() as queue:
            return await self._amend(key, amend, queue)

    async def _amend(self, key: Key, amend: Amend, queue: AsyncExitStack) -> Amended:
        place = partition(key)
        give_up = asyncio.get_running_loop().time() + self._patience_s
        found, is_fresh = self._records.get(place), False
        tries, torn_at, maybe_done = 0, None, False
        while True:
            if found is None:
                found, is_fresh = read_record(key, await self._requests.get(place)), True
            now = self._times.now_ms()
            if found.stage is not None and found.is_live(now):
                found, is_fresh = await self._stages.finish(key, place, found), True
                continue
            try:
                life = _amended(key, found, amend, now)
            except SessionError:
                if is_fresh:
                    raise
                found = None
                continue
            if life is None and not is_fresh:
                found = None
                continue
            try:
                if life is None:
                    _, fields = await self._fields(place, found)
                    self._records.keep(place, found)
                    is_own = maybe_done and found.has_write(amend.id)  # its reply was lost, and it was sent again
                    return Amended(now, found.row(fields), is_own, found.commits.revision)
                record, fields = await self._store(key, place, found, life, amend, now)
                return Amended(now, record.row(fields), True, record.commits.revision)
            except Refused as refused:
                found, is_fresh = read_record(key, refused.item), True
                maybe_done = maybe_done or refused.maybe_done
            except Torn:
                if is_fresh and torn_at == found.moment:
                    raise state_lost(key) from None
                torn_at, found = found.moment if is_fresh else None, None
            tries += 1
            if asyncio.get_running_loop().time() > give_up:
                raise StoreUnavailableError(f"{name_of(key)} changes faster than it can be amended")
            if tries == 2:
                await queue.enter_async_context(self._requests.queue(place))
                found, is_fresh = self._records.get(place), False
            elif tries > 2:
                await asyncio.sleep(random.random() * min(0.01 * tries, 0.25))

    async def _store(
        self, key: Key, place: str, found: Record, life: Life, amend: Amend, now: int
    ) -> tuple[Record, dict[str, bytes]]:
        """Write the record with its new life, and the fields; return both."""
        old_item, fields = await self._fields(place, found)
        gone_at = life.stamps.gone_at
        expires = expiry_of(gone_at, now)
        kept = await keep_alive(self._requests, place, found, gone_at, now)
        plan = _plan(kept.record, life, amend, fields, old_item, expires, sooner(kept.stays_until, expires), now)
        update = _update(plan, amend, now)
        if plan.ops:
            await self._stages.carry_out(key, place, plan, update, now)
        else:
            change, values = update.change, update.change.values | update.given
            await self._requests.update(place, change.expression, values, update.condition)
        self._records.keep(place, plan.record)
        if plan.garbage or plan.record.unstamped is not None:
            self._records.keep(place, await self._stages.sweep(place, plan.record, now))
        return plan.record, fields

    async def _fields(self, place: str, record: Record) -> tuple[Item | None, dict[str, bytes]]:
        """The item with the fields of a record, and the fields."""
        if not record.parts.has_fields:
            return None, {}
        item = await self._requests.get(place, record.names.fields)
        return item, await Reader(self._requests, place, record).fields_in(item)


def _amended(key: Key, found: Record, amend: Amend, now: int) -> Life | None:
    """The life of a key after an amendment. None: there is nothing to do.

    Raises:
        SessionNotFoundError, SessionEndedError, SessionExpiredError, SessionConflictError: It is refused.
    """
    if not found.is_live(now):
        raise SessionNotFoundError(f"{name_of(key)} does not exist, was deleted, or is past its time")
    life = found.copy_of_life()
    if not life.amend(amend, now, name_of(key)):
        return None
    if found.lease is not None and found.lease.until > now:
        life.prolong(found.lease.until)
    return life


def _plan(
    found: Record,
    life: Life,
    amend: Amend,
    fields: dict[str, bytes],
    old_item: Item | None,
    expires: int | None,
    stays_until: int | None,
    now: int,
) -> Plan:
    """What is to be written. The fields are changed in place."""
    pieces = Pieces(found.names, os.urandom(8))
    changes, parts, fields_tag = found.changes, found.parts, found.fields_tag
    ops: list[Op] = []
    swept: frozenset[bytes] = frozenset()
    if amend.fields:
        _merge(fields, amend.fields)
        op = Op(found.names.fields, msgspec.msgpack.encode(fields), tag=amend.id)
        assert op.data is not None
        is_large = len(op.data) > PIECE_BYTES
        if is_large:
            op.large, op.data = pieces.put(op.data), None
        ops.append(op)
        changes = structs.replace(changes, has_fields=True, has_large_fields=is_large)
        parts = structs.replace(parts, has_fields=True, has_large_fields=is_large)
        fields_tag = amend.id
        ref = None if old_item is None else large_of(old_item)
        if ref is not None:
            swept = frozenset((garbage(found.names.pieces(ref.stage, ref.first, ref.count)),))
    record = structs.replace(
        found,
        life=life,
        rest=encode_rest(life, fields_tag),
        fields_tag=fields_tag,
        changes=changes,
        parts=parts,
        runs_out_at=runs_out_at(life, found.runs_out_at, now),
        stays_until=stays_until,
        unstamped=unstamped(found, life.stamps.gone_at, amend.id),
        garbage=found.garbage | swept,
    )
    return Plan(found, record, ops, pieces, expires, swept, {})


def _update(plan: Plan, amend: Amend, now: int) -> Update:
    """The record is as it was found, and its session not gone; nor has its end, or the lease, moved: both matter."""
    change = Change().write_record(plan.record).times(plan.record)
    found = Change().given(now=number(now))
    condition = f"{found.as_found(plan.found)} AND attribute_not_exists(st)"
    condition += " AND (attribute_not_exists(g) OR g > :now)"
    assert plan.found.life is not None
    ends_at = optional(plan.found.life.stamps.ends_at)
    if ends_at is not None:
        condition += " AND (e = :ends_was OR (attribute_not_exists(e) AND g = :ends_was))"
        found.given(ends_was=ends_at)
    if plan.found.lease is None:
        condition += " AND attribute_not_exists(ln)"
    else:
        condition += " AND ln = :ln_was"
        found.given(ln_was=binary(plan.found.lease.nonce))
    return Update(amend.id, change, condition, found.values)


def _merge(fields: dict[str, bytes], changes: Mapping[str, bytes | None]) -> None:
    for name, data in changes.items():
        if data is None:
            fields.pop(name, None)
        else:
            fields[name] = data
