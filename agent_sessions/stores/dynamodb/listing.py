"""Finding, counting and scanning.

Five indexes of the table hold the records alone, since only they have the indexes' keys. DynamoDB brings them up to
date by itself, usually within milliseconds; what they tell is checked against the records.

Two go by the last activity, and know when a session idles, ends and goes. Two go by its start, and change only when it
is made and deleted. The fifth holds the sessions that will end by themselves, each under a time not after its end, so
that it need not move with each activity: whoever looks for what has run out moves what is there too early.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from agent_sessions.stores.base import Cursor, Found, Key, Keys, Kind, Order, Page, Row
from agent_sessions.stores.dynamodb.layout.keys import RECORD, partition, tenant_shards, user_index
from agent_sessions.stores.dynamodb.layout.payloads import Torn
from agent_sessions.stores.dynamodb.layout.records import (
    DELETED,
    Change,
    Record,
    number,
    optional,
    read_record,
    runs_out_at,
)
from agent_sessions.stores.dynamodb.places import Places, key_in, of_shard
from agent_sessions.stores.dynamodb.reading import Reader
from agent_sessions.stores.dynamodb.service.requests import Item, Refused, Requests, gather, item_key
from agent_sessions.stores.dynamodb.service.table import (
    RUNNING_OUT,
    TENANT_BY_ACTIVITY,
    TENANT_BY_START,
    USER_BY_ACTIVITY,
    USER_BY_START,
    Index,
)
from agent_sessions.stores.dynamodb.staging import Stages
from agent_sessions.stores.lifetime import Status

_NOBODY = Key("", "session", "")  # whose record without a life this was, its name may not tell

_LATEST = 2**63 - 1

_FILTERS: dict[Status | None, str] = {
    None: "attribute_not_exists(g) OR g > :now",
    "active": "(attribute_not_exists(i) OR i > :now) AND (attribute_not_exists(e) OR e > :now)"
    " AND (attribute_not_exists(g) OR g > :now)",
    "idle": "i <= :now AND (attribute_not_exists(e) OR e > :now) AND (attribute_not_exists(g) OR g > :now)",
    "ended": "e <= :now AND (attribute_not_exists(g) OR g > :now)",
}
"""What the index by activity is filtered by. A time that is left out is as the next one."""

_OR_DELETED = " OR g = :deleted"
"""A listing of all sessions comes by those that are deleted and not swept, and sees to it."""

_FILTERED = 250
"""How many entries of the index by activity are read at first, at least, if one status is asked for: 3 read units."""

_LOOKED_AT = 50
"""How many records are read at a time, at least, where the index can't tell which are asked for."""


class Asked(NamedTuple):
    """What a listing is of."""

    tenant: str
    kind: Kind
    belongs_to: str | None
    status: Status | None
    now: int

    @property
    def shards(self) -> list[str]:
        """Where the indexes have it."""
        if self.belongs_to is None:
            return tenant_shards(self.tenant, self.kind)
        return [user_index(self.tenant, self.kind, self.belongs_to)]

    def shows(self, row: Row) -> bool:
        """Whether a session that is there, as it is now, belongs into it."""
        return self.belongs_to in (None, row.belongs_to) and self.status in (None, row.stamps.status(self.now))


class Listing:
    """Finds, counts and scans."""

    def __init__(self, requests: Requests, stages: Stages, read: Callable[[Key], Awaitable[Found | None]]) -> None:
        self._requests = requests
        self._stages = stages
        self._read = read

    async def find(self, asked: Asked, order: Order, limit: int, cursor: Cursor | None) -> Page:
        """See `Store.find`."""
        if limit < 1:
            return Page(asked.now, [], None)
        places = self._places(asked, order, cursor)
        least = _LOOKED_AT if order == "start" and asked.status is not None else 1
        found: list[tuple[Cursor, Found]] = []
        while len(found) <= limit:
            taken = await places.take(max(least, limit + 1 - len(found)))
            if not taken:
                break
            live = await self._live([key for _, key in taken], asked)
            found += [(place, live[key]) for place, key in taken if key in live]
        page = [live for _, live in found[:limit]]
        return Page(asked.now, page, found[limit - 1][0] if len(found) > limit else None)

    async def count(self, asked: Asked) -> int:
        """See `Store.count`."""
        index = TENANT_BY_ACTIVITY if asked.belongs_to is None else USER_BY_ACTIVITY
        filter = {"FilterExpression": _FILTERS[asked.status], "Select": "COUNT"}
        queries = [_by_activity(index, shard, asked, None) | filter for shard in asked.shards]
        return sum(await gather([partial(self._count, query) for query in queries]))

    async def run_out(self, asked: Asked, limit: int) -> Page:
        """See `Store.run_out`."""
        queries = [of_shard(RUNNING_OUT, shard, "<= :now", now=number(asked.now)) for shard in asked.shards]
        places = Places(self._requests, RUNNING_OUT, queries, oldest_first=True)
        found: list[tuple[Found, Cursor, Key]] = []
        while limit > 0:
            taken = await places.take(limit + 1)
            if not taken:
                break
            ended = await self._live([key for _, key in taken], asked)
            found += [(ended[key], place, key) for place, key in taken if _ran_out(ended.get(key))]
            await gather([partial(self._move, key, asked.now) for _, key in taken if not _ran_out(ended.get(key))])
            found.sort(key=lambda entry: _end_of(entry[0]))
            # An entry's time is not after its end: those that follow have ended later.
            if len(found) >= limit and _end_of(found[limit - 1][0])[0] < taken[-1][0].at:
                break
        early = [key for place, where, key in found[limit:] if where.at != place.row.ends_at]
        await gather([partial(self._move, key, asked.now) for key in early])
        return Page(asked.now, [place for place, _, _ in found[:limit]], None)

    async def _move(self, key: Key, now: int) -> None:
        """Put a session that was found in its place among those that run out, or take it from there."""
        record = read_record(key, await self._requests.get(partition(key)))
        if record.life is None or record.runs_out_at is None or record.runs_out_at > now:
            return
        ends_at = runs_out_at(record.life, None, now) if record.is_live(now) else None
        if ends_at == record.runs_out_at:
            return
        change = Change().set("w", optional(ends_at)).given(w_was=number(record.runs_out_at))
        condition = f"w = :w_was AND {change.as_found(record)}"
        try:
            await self._requests.update(partition(key), change.expression, change.values, condition)
        except Refused:
            return  # it has changed meanwhile, and whoever comes by next will see

    async def scan(self, now: int, *, limit: int, cursor: bytes | None) -> tuple[Keys, list[tuple[str, Record]]]:
        """See `Store.scan`. Beside the keys, the records that have something to sweep."""
        arguments: dict[str, Any] = {
            "FilterExpression": "k = :record",
            "ExpressionAttributeValues": {":record": {"B": RECORD}},
            "ConsistentRead": True,
            "Limit": max(1, limit),
        }
        if cursor is not None:
            arguments["ExclusiveStartKey"] = item_key(*msgspec.msgpack.decode(cursor, type=tuple[str, bytes]))
        live: list[Key] = []
        to_sweep: list[tuple[str, Record]] = []
        last: Item | None = None
        while not live:
            reply = await self._requests.call("Scan", **arguments)
            for item in reply["Items"]:
                key = key_in(item) if "c" in item else _NOBODY
                record = read_record(key, item)
                if record.is_live(now):
                    live.append(key)
                if record.garbage or record.pending or record.unstamped is not None:
                    to_sweep.append((item["p"]["S"], record))
            last = reply.get("LastEvaluatedKey")
            if last is None:
                break
            arguments["ExclusiveStartKey"] = last
        following = None if last is None else msgspec.msgpack.encode((last["p"]["S"], last["k"]["B"]))
        return Keys(live, following), to_sweep

    # ------------------------------------------------------------------------------------------------- the indexes

    def _places(self, asked: Asked, order: Order, cursor: Cursor | None) -> Places:
        of_user, at_least = asked.belongs_to is not None, 0
        if order == "activity":
            index = USER_BY_ACTIVITY if of_user else TENANT_BY_ACTIVITY
            queries = [_filtered(_by_activity(index, shard, asked, cursor), asked.status) for shard in asked.shards]
            at_least = 0 if asked.status is None else _FILTERED
        else:
            index = USER_BY_START if of_user else TENANT_BY_START
            queries = [of_shard(index, shard, "<= :latest", latest=_latest(cursor)) for shard in asked.shards]
        return Places(self._requests, index, queries, before=cursor, at_least=at_least)

    async def _count(self, query: dict[str, Any]) -> int:
        return sum([reply["Count"] async for reply in self._requests.pages("Query", **query)])

    # ------------------------------------------------------------------------------------------------- the records

    async def _live(self, keys: list[Key], asked: Asked) -> dict[Key, Found]:
        """Those of these sessions that are there, and are asked for."""
        items = await self._requests.get_all([(partition(key), RECORD) for key in keys])
        records = {key: read_record(key, items.get((partition(key), RECORD))) for key in keys}
        for key, record in records.items():
            if record.life is None and record.garbage:
                await self._stages.sweep(partition(key), record, asked.now)  # who deleted it may have died over it
        live = {
            key: record
            for key, record in records.items()
            if record.is_live(asked.now) and asked.shows(record.row(None))
        }
        names = {key: (partition(key), record.names.fields) for key, record in live.items() if record.parts.has_fields}
        fields = await self._requests.get_all(list(names.values()))
        found: dict[Key, Found] = {}
        for key, record in live.items():
            try:
                item = fields.get(names[key]) if key in names else None
                reader = Reader(self._requests, partition(key), record)
                row = record.row(await reader.fields_in(item) if key in names else {})
                found[key] = Found(key.id, row, record.commits.revision)
            except Torn:  # changed between the two requests, or not in its place yet
                read = await self._read(key)
                if read is not None and asked.shows(read.row):
                    found[key] = read
        return found


def _by_activity(index: Index, shard: str, asked: Asked, cursor: Cursor | None) -> dict[str, Any]:
    return of_shard(index, shard, "<= :latest", latest=_latest(cursor), now=number(asked.now))


def _filtered(query: dict[str, Any], status: Status | None) -> dict[str, Any]:
    if status is not None:
        return query | {"FilterExpression": _FILTERS[status]}
    values = query["ExpressionAttributeValues"] | {":deleted": number(DELETED)}
    return query | {"FilterExpression": _FILTERS[None] + _OR_DELETED, "ExpressionAttributeValues": values}


def _latest(cursor: Cursor | None) -> Item:
    return number(_LATEST if cursor is None else cursor.at)


def _ran_out(ended: Found | None) -> bool:
    return ended is not None and ended.row.ended_at is None


def _end_of(found: Found) -> tuple[int, bytes]:
    assert found.row.ends_at is not None
    return found.row.ends_at, found.id.encode()
