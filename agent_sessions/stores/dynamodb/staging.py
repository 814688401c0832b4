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

from collections.abc import Iterable
from functools import partial

import msgspec

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.base import Commit, Discreet, Key
from agent_sessions.stores.dynamodb.expiry import DAY, seconds
from agent_sessions.stores.dynamodb.keys import Life, Span
from agent_sessions.stores.dynamodb.payloads import Large, large_of, read_large
from agent_sessions.stores.dynamodb.records import Change, Record, binary, number, read_record, remembered
from agent_sessions.stores.dynamodb.requests import MOST_BYTES, Item, Refused, Requests, gather, item_key
from agent_sessions.stores.dynamodb.writing import MOST_WRITES, Op, Plan, garbage


class Staged(Discreet, msgspec.Struct, array_like=True, frozen=True):
    """What a record says of a commit that is published and not yet in its places."""

    ops: Large
    expires: int | None


class Pending(Discreet, msgspec.Struct, array_like=True, frozen=True):
    """What a record says of a stage that is being filled: for which life and revision, and where."""

    life: bytes
    revision: int
    own_life: bytes
    stage: bytes


_ops_decoder = msgspec.msgpack.Decoder(list[Op])
_staged_decoder = msgspec.msgpack.Decoder(Staged)
_pending_decoder = msgspec.msgpack.Decoder(Pending)
_garbage_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, int])


class Stages:
    """Carries plans out, finishes those of others, and sweeps."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    # ------------------------------------------------------------------------------------------------- commits

    async def carry_out(
        self, key: Key, partition: str, plan: Plan, commit: Commit, now: int, *, dead_lease: bytes | None
    ) -> None:
        """Store a commit. Then it is stored whole, whatever becomes of its last steps.

        Raises:
            Refused: The record is not as it was found. Nothing is stored.
        """
        ops: bytes | None = None
        if plan.is_staged:
            ops = plan.pieces.put(msgspec.msgpack.encode(plan.ops))
        condition, given = self._condition(plan.found, commit, now, dead_lease)
        mine: frozenset[bytes] = frozenset()
        if len(plan.pieces):
            mine = frozenset((self._pending(plan),))
            await self._fill(partition, plan, mine, condition, given, now)
            condition += " AND contains(pd, :mine)"
            given["mine"] = binary(next(iter(mine)))
        change = (
            Change()
            .write(key, plan.record, moves_the_end=not commit.maintenance)
            .lease(plan.record.lease)
            .given(**given)
        )
        change.add("gb", plan.garbage).discard("pd", mine)
        if plan.found.deletions and not remembered(plan.found.deletions, now):
            change.remove("dm")
        try:
            if ops is None:
                await self._transact(partition, plan, change, condition)
            else:
                staged = Staged(msgspec.msgpack.decode(ops, type=Large), plan.expires)
                change.set("st", binary(msgspec.msgpack.encode(staged)))
                await self._requests.update(partition, change.expression, change.values, condition)
        except Refused as refused:
            found = read_record(key, refused.item)
            if mine and found.commits.find(commit.id) is None:
                await self._discard_stage(partition, mine)
            raise

    async def _fill(
        self, partition: str, plan: Plan, mine: frozenset[bytes], condition: str, given: dict[str, Item], now: int
    ) -> None:
        """Enter the stage in the record, and write its pieces."""
        change = Change().add("pd", mine).stay_for(seconds(now) + DAY).given(**given)
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
    def _condition(found: Record, commit: Commit, now: int, dead_lease: bytes | None) -> tuple[str, dict[str, Item]]:
        """That the record is as it was found, its session not past its end, and nobody else's lease in the way."""
        given: dict[str, Item] = {"owner": {"S": commit.owner}}
        free = "attribute_not_exists(lo) OR lo = :owner"
        if dead_lease is not None:
            free += " OR ln = :dead"
            given["dead"] = binary(dead_lease)
        if not found.life.id:
            return f"attribute_not_exists(c) AND ({free})", given
        given |= {"was": binary(found.commits.ids), "now": number(now)}
        lives = "(attribute_not_exists(g) OR g > :now)" if found.is_live(now) else "g <= :now"
        return f"c = :was AND {lives} AND attribute_not_exists(st) AND ({free})", given

    @staticmethod
    def _pending(plan: Plan) -> bytes:
        found = plan.found
        return msgspec.msgpack.encode(
            Pending(found.life.id, found.commits.revision, plan.record.life.id, plan.pieces.stage)
        )

    # ------------------------------------------------------------------------------------------------- finishing

    async def finish(self, key: Key, partition: str, record: Record) -> Record:
        """Bring a published commit to its places, and return the record as it is then.

        Raises:
            Torn: Somebody else has finished it meanwhile.
        """
        assert record.stage is not None
        staged = _staged_decoder.decode(record.stage)
        ops = _ops_decoder.decode(await read_large(self._requests, partition, record.life, staged.ops))
        still: Item = {
            "Key": item_key(partition),
            "ConditionExpression": "st = :st",
            "ExpressionAttributeValues": {":st": binary(record.stage)},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        done = garbage(record.life.pieces(staged.ops.stage, staged.ops.first, staged.ops.count))
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

    async def sweep(self, partition: str, record: Record, now: int) -> None:
        """Delete what nobody can reach any more, and let the record forget it. Another time, if the store is away."""
        due = {raw: _garbage_decoder.decode(raw) for raw in record.garbage}
        due = {raw: span for raw, span in due.items() if span[2] <= now}
        dead = _dead(record)
        if not due and not dead:
            return
        try:
            spans = [(low, high) for low, high, _ in due.values()]
            await gather([partial(self._delete, partition, span) for span in spans])
            for raw in dead:
                await self._discard_stage(partition, frozenset((raw,)))
            await self._forget(partition, record, frozenset(due), now)
        except StoreUnavailableError:
            return  # it is still in the record: whoever comes next will do it

    async def _delete(self, partition: str, span: Span) -> None:
        async for page in self._requests.query(partition, span, only="k, o"):
            for item in page:
                ref = large_of(item)
                if ref is not None:
                    life = item["k"]["B"][:8]
                    await self._delete(partition, Life(life).pieces(ref.stage, ref.first, ref.count))
            await self._requests.delete_all([(partition, item["k"]["B"]) for item in page])

    async def _discard_stage(self, partition: str, raw: frozenset[bytes]) -> None:
        for one in raw:
            pending = _pending_decoder.decode(one)
            await self._delete(partition, Life(pending.own_life).pieces(pending.stage))
        change = Change().discard("pd", raw)
        try:
            await self._requests.update(partition, change.expression, change.values, "attribute_exists(p)")
        except Refused:
            return  # the record is swept

    async def _forget(self, partition: str, record: Record, swept: frozenset[bytes], now: int) -> None:
        if not swept:
            return
        change = Change().discard("gb", swept)
        condition = "attribute_exists(p)"
        if not record.life.id and swept == record.garbage:
            change.set("x", number(seconds(now) + DAY))  # nothing keeps what is left of the record any longer
            condition = "attribute_not_exists(c) AND attribute_exists(p)"
        try:
            await self._requests.update(partition, change.expression, change.values, condition)
        except Refused:
            return  # made again, or gone: the next sweep forgets it


def _dead(record: Record) -> list[bytes]:
    """The stages that can't be published any more: the session has changed since they were begun."""
    now = (record.life.id, record.commits.revision)
    decoded = ((raw, _pending_decoder.decode(raw)) for raw in record.pending)
    return [raw for raw, pending in decoded if (pending.life, pending.revision) != now]


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
