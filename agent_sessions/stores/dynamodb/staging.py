"""Commits of any size in steps of which one decides, and the sweeping of what is left behind.

A commit that fits is one transaction: the record, under the condition that it is as it was found, and the items. What
does not fit an item is written before as pieces that nobody can reach yet; the stage is entered in the record first
(`pd`), so that they are swept should the commit never come.

A commit that does not fit a transaction goes the same way: its list of writes becomes pieces, and one conditional
write of the record publishes it (`st`). From then on it is stored. Whoever meets the record next, the committer or
another, brings the writes to their places, in transactions that each check that `st` is still there, so that none
of them is carried out late; then takes `st` away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import msgspec
from msgspec import Struct, structs

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.base import Discreet, Key
from agent_sessions.stores.dynamodb.expiry import DAY, let_go, seconds
from agent_sessions.stores.dynamodb.layout.keys import Names, Span
from agent_sessions.stores.dynamodb.layout.payloads import Large, Torn, large_of, read_large
from agent_sessions.stores.dynamodb.layout.records import (
    NEVER,
    Change,
    Record,
    binary,
    number,
    read_record,
    remembered,
    state_lost,
)
from agent_sessions.stores.dynamodb.service.requests import MOST_BYTES, Item, Refused, Requests, gather, item_key
from agent_sessions.stores.dynamodb.writing import MOST_WRITES, Op, Plan, Update, garbage


class Staged(Discreet, Struct, array_like=True, frozen=True):
    """What a record says of a commit that is published and not yet in its places."""

    ops: Large
    expires: int | None


class Pending(Discreet, Struct, array_like=True, frozen=True):
    """What a record says of a stage that is being filled: on which life and revision, since when, and where."""

    life: bytes
    revision: int
    begun: int
    own_life: bytes
    stage: bytes

    def is_dead(self, record: Record, now: int) -> bool:
        """Whether it can't be published any more: the session has changed, or it was begun long ago."""
        return (self.life, self.revision) != (record.names.id, record.commits.revision) or self.begun + _DEAD_MS <= now

    @property
    def span(self) -> Span:
        """Its pieces."""
        return Names(self.own_life).pieces(self.stage)


READERS_GONE_MS = 1_000
"""So long after a turn took its lease it surely does not read any more without looking again at the record."""

_DEAD_MS = DAY * 1000
_FILLING_MS = 60_000
"""For longer than this nobody fills a stage."""
_MOST_GARBAGE = 100  # more of it, which only many large values at once leave, is swept all the same, but not recorded

_ops_decoder = msgspec.msgpack.Decoder(list[Op])
_staged_decoder = msgspec.msgpack.Decoder(Staged)
_pending_decoder = msgspec.msgpack.Decoder(Pending)
_garbage_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, int])


class Stages:
    """Carries plans out, finishes those of others, and sweeps."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    # ------------------------------------------------------------------------------------------------- commits

    async def carry_out(self, key: Key, partition: str, plan: Plan, update: Update, now: int) -> None:
        """Store a commit or an amendment. Then it is stored whole, whatever becomes of its last steps.

        Raises:
            Refused: The record is not as it was found. Nothing is stored.
        """
        ops: bytes | None = None
        if plan.is_staged:
            ops = plan.pieces.put(msgspec.msgpack.encode(plan.ops))
        change, condition, given = update.change, update.condition, update.given
        mine: frozenset[bytes] = frozenset()
        if len(plan.pieces):
            mine = frozenset((self._pending(plan, now),))
            await self._fill(partition, plan, mine, condition, given)
            condition += " AND contains(pd, :mine)"
            change.given(mine=binary(next(iter(mine))))
        change.values |= given
        change.add("gb", frozenset(sorted(plan.garbage)[:_MOST_GARBAGE])).discard("pd", mine)
        if plan.found.deletions and not remembered(plan.found.deletions, now):
            change.remove("dm")
        if plan.found.stage is not None and ops is None:
            change.remove("st")  # of a session that is past its end: nobody needs it in its places
        try:
            if ops is None:
                await self._transact(partition, plan, change, condition)
            else:
                staged = Staged(msgspec.msgpack.decode(ops, type=Large), plan.expires)
                change.set("st", binary(msgspec.msgpack.encode(staged)))
                await self._requests.update(partition, change.expression, change.values, condition)
        except Refused as refused:
            found = read_record(key, refused.item)
            if mine and not found.has_write(update.id):
                await self.sweep(partition, found, now, filled=mine)
            raise

    async def _fill(
        self, partition: str, plan: Plan, mine: frozenset[bytes], condition: str, given: dict[str, Item]
    ) -> None:
        """Enter the stage in the record, and write its pieces."""
        change = Change().add("pd", mine)
        change.values |= given
        if not plan.found.names.id:
            change.set("x", number(NEVER))  # it is all that knows of the pieces
        await self._requests.update(partition, change.expression, change.values, condition)
        await self._requests.put_all(plan.pieces.items(partition, plan.expires))

    async def _transact(self, partition: str, plan: Plan, change: Change, condition: str) -> None:
        update = {
            "Key": item_key(partition),
            "UpdateExpression": change.expression,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": change.values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        writes = [op.write(partition, plan.expires) for op in plan.ops]
        await self._requests.transact([{"Update": update}, *writes])

    @staticmethod
    def _pending(plan: Plan, now: int) -> bytes:
        life, revision = plan.found.names.id, plan.found.commits.revision
        return msgspec.msgpack.encode(Pending(life, revision, now, plan.record.names.id, plan.pieces.stage))

    # ------------------------------------------------------------------------------------------------- finishing

    async def finish(self, key: Key, partition: str, record: Record) -> Record:
        """Bring a published commit to its places, unless somebody else does; return the record as it is then.

        Raises:
            StateLostError: A piece of it is gone.
        """
        assert record.stage is not None
        staged = _staged_decoder.decode(record.stage)
        try:
            ops = _ops_decoder.decode(await read_large(self._requests, partition, record.names, staged.ops))
        except Torn:
            current = read_record(key, await self._requests.get(partition))
            if current.stage == record.stage:
                raise state_lost(key) from None
            return current
        still: Item = {
            "Key": item_key(partition),
            "ConditionExpression": "st = :st",
            "ExpressionAttributeValues": {":st": binary(record.stage)},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        done = garbage(record.names.pieces(staged.ops.stage, staged.ops.first, staged.ops.count))
        change = Change().remove("st").add("gb", frozenset((done,))).given(st=binary(record.stage))
        try:
            for batch in _batches(ops):
                writes = [op.write(partition, staged.expires) for op in batch]
                await self._requests.transact([{"ConditionCheck": still}, *writes])
            item = await self._requests.update(partition, change.expression, change.values, "st = :st")
        except Refused as refused:
            return read_record(key, refused.item)
        return read_record(key, item)

    # ------------------------------------------------------------------------------------------------- sweeping

    async def sweep(
        self, partition: str, record: Record, now: int, *, filled: frozenset[bytes] = frozenset()
    ) -> Record:
        """Delete what nobody can reach any more, and see that the rest has its TTL; return what the record is then.

        If the store is away, what is left to do stays in the record, and whoever comes next will do it.

        Args:
            partition: Where.
            record: The record.
            now: What is due by then, is deleted.
            filled: Stages of the caller's own, which it has filled in vain.
        """
        try:
            record = await self._sweep(partition, record, now, filled)
            return await let_go(self._requests, partition, record, now)
        except StoreUnavailableError:
            return record

    async def clear(self, partition: str, record: Record, now: int) -> None:
        """Delete what a deleted session has left; wait for those who may still be reading it.

        Raises:
            StoreUnavailableError: Some of it may be left.
        """
        not_before = [span[2] for span in _spans(record.garbage).values() if span[2] - now <= READERS_GONE_MS]
        ready = max([now, *not_before])
        await asyncio.sleep((ready - now) / 1000)
        await self._sweep(partition, record, ready, frozenset())

    async def _sweep(self, partition: str, record: Record, now: int, filled: frozenset[bytes]) -> Record:
        record = await self._give_up(partition, record, now, filled)
        due = {raw: span for raw, span in _spans(record.garbage).items() if span[2] <= now}
        if not due:
            return record
        await gather([partial(self._delete, partition, (low, high)) for low, high, _ in due.values()])
        await self._forget(partition, record, frozenset(due), now)
        return structs.replace(record, garbage=record.garbage - due.keys())

    async def _give_up(self, partition: str, record: Record, now: int, filled: frozenset[bytes]) -> Record:
        """Leave dead stages to the sweep. From here on they can't be published.

        One that somebody may still be filling is swept at once, and again when that must be over.
        """
        stages = {raw: _pending_decoder.decode(raw) for raw in record.pending | filled}
        stages = {raw: stage for raw, stage in stages.items() if raw in filled or stage.is_dead(record, now)}
        if not stages:
            return record
        spans = {garbage(stage.span) for stage in stages.values()}
        for raw, stage in stages.items():
            if raw not in filled and now < stage.begun + _FILLING_MS:
                spans.add(garbage(stage.span, stage.begun + _FILLING_MS))
        dead = frozenset(stages)
        change = Change().discard("pd", dead).add("gb", frozenset(spans))
        try:
            await self._requests.update(partition, change.expression, change.values, "attribute_exists(p)")
        except Refused:
            return record  # swept as a whole, pieces and all
        return structs.replace(record, pending=record.pending - dead, garbage=record.garbage | spans)

    async def _delete(self, partition: str, span: Span) -> None:
        async for page in self._requests.query(partition, span, only="k, o"):
            for item in page:
                ref = large_of(item)
                if ref is not None:
                    names = Names(item["k"]["B"][:8])
                    await self._delete(partition, names.pieces(ref.stage, ref.first, ref.count))
            await self._requests.delete_all([(partition, item["k"]["B"]) for item in page])

    async def _forget(self, partition: str, record: Record, swept: frozenset[bytes], now: int) -> None:
        change = Change().discard("gb", swept)
        condition = "attribute_exists(p)"
        if not record.names.id and swept == record.garbage:
            change.forget_life().set("x", number(seconds(now) + DAY))  # nothing keeps the record any longer
            condition = "attribute_exists(p) AND attribute_not_exists(c)"
        try:
            await self._requests.update(partition, change.expression, change.values, condition)
        except Refused:
            return  # made again, or gone: the next sweep forgets it


def _spans(garbage: frozenset[bytes]) -> dict[bytes, tuple[bytes, bytes, int]]:
    return {raw: _garbage_decoder.decode(raw) for raw in garbage}


def _batches(ops: list[Op]) -> Iterable[list[Op]]:
    """As many as one transaction takes, each time."""
    batch: list[Op] = []
    size = 0
    for op in ops:
        size += len(op.data or b"")
        if batch and (len(batch) == MOST_WRITES or size > MOST_BYTES):
            yield batch
            batch, size = [], len(op.data or b"")
        batch.append(op)
    if batch:
        yield batch
