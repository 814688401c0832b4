"""Finding, counting and scanning.

Two indexes of the table hold the records alone, since only they have the indexes' keys. DynamoDB brings them up to
date by itself, usually within milliseconds; what they tell is checked against the records. A tenant's keys are spread
over eight partitions of the index, so that no tenant is bound to what one partition can take.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from agent_sessions.stores.base import Cursor, Found, Key, Keys, Kind, Page, Row
from agent_sessions.stores.dynamodb.layout.keys import (
    RECORD,
    active_at,
    key_of,
    partition,
    place,
    tenant_shards,
    user_index,
)
from agent_sessions.stores.dynamodb.layout.payloads import Torn
from agent_sessions.stores.dynamodb.layout.records import Record, read_record
from agent_sessions.stores.dynamodb.reading import Reader
from agent_sessions.stores.dynamodb.service.requests import Item, Requests, gather, item_key
from agent_sessions.stores.dynamodb.service.table import BY_TENANT, BY_USER

_NOBODY = Key("", "session", "")  # whose record without a life this was, its name may not tell
_NEWEST = b"\xff"
_LIVE = "attribute_not_exists(g) OR g > :now"


class Listing:
    """Finds, counts and scans."""

    def __init__(self, requests: Requests, read_row: Callable[[Key], Awaitable[Row | None]]) -> None:
        self._requests = requests
        self._read_row = read_row

    async def find(
        self, tenant: str, kind: Kind, now: int, *, belongs_to: str | None, limit: int, cursor: Cursor | None
    ) -> Page:
        """See `Store.find`."""
        if limit < 1:
            return Page([], None)
        found: list[tuple[Cursor, Found]] = []
        before = cursor
        while len(found) <= limit:
            asked = limit + 1 - len(found)
            places = await self._places(tenant, kind, now, belongs_to, before, asked)
            rows = await self._rows([key for _, key in places], now)
            found += [
                (where, Found(key.id, row))
                for where, key in places
                if (row := rows.get(key)) is not None and (belongs_to is None or row.belongs_to == belongs_to)
            ]
            if len(places) < asked:
                break
            before = places[-1][0]
        page = [live for _, live in found[:limit]]
        return Page(page, found[limit - 1][0] if len(found) > limit else None)

    async def count(self, tenant: str, kind: Kind, now: int, *, belongs_to: str | None) -> int:
        """See `Store.count`."""
        index, shards = _shards(tenant, kind, belongs_to)
        return sum(await gather([partial(self._count_shard, index, shard, now) for shard in shards]))

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
                key = _key(item) if "c" in item else _NOBODY
                record = read_record(key, item)
                if record.is_live(now):
                    live.append(key)
                if record.garbage or record.pending:
                    to_sweep.append((item["p"]["S"], record))
            last = reply.get("LastEvaluatedKey")
            if last is None:
                break
            arguments["ExclusiveStartKey"] = last
        following = None if last is None else msgspec.msgpack.encode((last["p"]["S"], last["k"]["B"]))
        return Keys(live, following), to_sweep

    # ------------------------------------------------------------------------------------------------- the indexes

    async def _places(
        self, tenant: str, kind: Kind, now: int, belongs_to: str | None, before: Cursor | None, asked: int
    ) -> list[tuple[Cursor, Key]]:
        """The next places of a listing, the newest first."""
        index, shards = _shards(tenant, kind, belongs_to)
        read = await gather([partial(self._read_shard, index, shard, now, before, asked) for shard in shards])
        places = [
            (Cursor(active_at(item["a"]["B"]), key.id), key) for items in read for item in items for key in [_key(item)]
        ]
        places = [(where, key) for where, key in places if before is None or _order(where) < _order(before)]
        return sorted(places, key=lambda found: _order(found[0]), reverse=True)[:asked]

    async def _read_shard(self, index: str, shard: str, now: int, before: Cursor | None, asked: int) -> list[Item]:
        items: list[Item] = []
        highest = _NEWEST if before is None else place(before)
        arguments = _of_shard(index, shard, now, highest) | {"ScanIndexForward": False, "Limit": asked + 1}
        async with aclosing(self._requests.pages("Query", **arguments)) as pages:
            async for reply in pages:
                items += reply["Items"]
                if len(items) > asked:
                    break
        return items

    async def _count_shard(self, index: str, shard: str, now: int) -> int:
        arguments = _of_shard(index, shard, now, _NEWEST) | {"Select": "COUNT"}
        return sum([reply["Count"] async for reply in self._requests.pages("Query", **arguments)])

    # ------------------------------------------------------------------------------------------------- the records

    async def _rows(self, keys: list[Key], now: int) -> dict[Key, Row]:
        """The rows of those keys that are live."""
        items = await self._requests.get_all([(partition(key), RECORD) for key in keys])
        records = {key: read_record(key, items.get((partition(key), RECORD))) for key in keys}
        live = {key: record for key, record in records.items() if record.is_live(now)}
        names = {key: (partition(key), record.life.fields) for key, record in live.items() if record.parts.has_fields}
        fields = await self._requests.get_all(list(names.values()))
        rows: dict[Key, Row] = {}
        for key, record in live.items():
            try:
                item = fields.get(names[key]) if key in names else None
                reader = Reader(self._requests, partition(key), record)
                rows[key] = record.row(await reader.fields_in(item) if key in names else {})
            except Torn:  # changed between the two requests, or not in its place yet
                row = await self._read_row(key)
                if row is not None:
                    rows[key] = row
        return rows


def _shards(tenant: str, kind: Kind, belongs_to: str | None) -> tuple[str, list[str]]:
    if belongs_to is None:
        return BY_TENANT, tenant_shards(tenant, kind)
    return BY_USER, [user_index(tenant, kind, belongs_to)]


def _of_shard(index: str, shard: str, now: int, highest: bytes) -> dict[str, Any]:
    attribute = "t" if index == BY_TENANT else "u"
    return {
        "IndexName": index,
        "KeyConditionExpression": f"{attribute} = :shard AND a <= :highest",
        "FilterExpression": _LIVE,
        "ExpressionAttributeValues": {
            ":shard": {"S": shard},
            ":highest": {"B": highest},
            ":now": {"N": str(now)},
        },
    }


def _order(cursor: Cursor) -> tuple[int, bytes]:
    return cursor.active_at, cursor.id.encode()


def _key(item: Item) -> Key:
    spelt = msgspec.msgpack.decode(item["n"]["B"], type=list[str]) if "n" in item else None
    return key_of(item["p"]["S"], spelt)
