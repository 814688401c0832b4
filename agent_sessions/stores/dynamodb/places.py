"""The places of a listing, in order, out of the index partitions that it is spread over.

A tenant's keys are spread over eight partitions of an index, so that no tenant is bound to what one partition can take.
Each is read a few entries at a time, and only as far as the listing comes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from agent_sessions.stores.base import Cursor, Key
from agent_sessions.stores.dynamodb.layout.keys import key_of
from agent_sessions.stores.dynamodb.service.requests import Item, Requests, gather
from agent_sessions.stores.dynamodb.service.table import Index

_MORE = 8
"""Entries that are read of each partition beyond its share, lest some have to be asked again for one or two."""

_MOST_AT_ONCE = 2000
"""About 250 KB of entries."""


def of_shard(index: Index, shard: str, condition: str, **values: Item) -> dict[str, Any]:
    """The arguments of a query for what a partition of an index has where the sort key meets a condition."""
    return {
        "IndexName": index.name,
        "KeyConditionExpression": f"{index.partition} = :shard AND {index.sort} {condition}",
        "ExpressionAttributeValues": {":shard": {"S": shard}, **{f":{name}": value for name, value in values.items()}},
    }


def key_in(item: Item) -> Key:
    """The key that an entry of an index, or a record, is of."""
    spelt = msgspec.msgpack.decode(item["n"]["B"], type=list[str]) if "n" in item else None
    return key_of(item["p"]["S"], spelt)


class Places:
    """The places of a listing: the time that it goes by, and the key.

    Args:
        requests: What is asked of the table.
        index: The index.
        queries: One query (`of_shard`) for each partition.
        before: The place to begin after; places are then given newest first.
        oldest_first: The other way round, from the beginning.
        at_least: How many entries to look at first, at least, since the queries leave some out.
    """

    def __init__(
        self,
        requests: Requests,
        index: Index,
        queries: list[dict[str, Any]],
        *,
        before: Cursor | None = None,
        oldest_first: bool = False,
        at_least: int = 0,
    ) -> None:
        self._shards = [_Shard(requests, index, query, oldest_first) for query in queries]
        self._before = None if before is None else _order(before)
        self._at_least = at_least
        self._sign = 1 if oldest_first else -1
        self._read: list[tuple[Cursor, Key]] = []

    async def take(self, number: int) -> list[tuple[Cursor, Key]]:
        """The next places, so many of them; fewer only at the end."""
        share = max(number, self._at_least) // len(self._shards) + _MORE
        while True:
            # Nothing comes before a time that all partitions are read beyond: one may hold more of that time itself.
            reached = [self._sign * shard.reached for shard in self._shards if shard.reached is not None]
            sure = min(reached, default=None)
            ready = len(self._read) if sure is None else sum(self._sign * at.at < sure for at, _ in self._read)
            if ready >= number or sure is None:
                taken, self._read = self._read[:number], self._read[number:]
                return taken
            needed = self._sign * self._read[number - 1][0].at if len(self._read) >= number else None
            behind = [
                shard
                for shard in self._shards
                if shard.reached is not None and (needed is None or self._sign * shard.reached <= needed)
            ]
            for found in await gather([partial(shard.read_on, share) for shard in behind]):
                self._read += [place for place in found if self._before is None or _order(place[0]) < self._before]
            self._read.sort(key=lambda place: _order(place[0]), reverse=self._sign < 0)
            share = min(share * 2, _MOST_AT_ONCE)


class _Shard:
    """A partition of an index, read from one end."""

    def __init__(self, requests: Requests, index: Index, query: dict[str, Any], oldest_first: bool) -> None:
        self._requests = requests
        self._sort = index.sort
        self._query = query | {"ScanIndexForward": oldest_first}
        self.reached: int | None = 0 if oldest_first else 2**63
        """The time as far as which it is read; None: there is no more."""

    async def read_on(self, number: int) -> list[tuple[Cursor, Key]]:
        """Look at so many entries more."""
        reply = await self._requests.call("Query", **self._query, Limit=number)
        last = reply.get("LastEvaluatedKey")
        self.reached = None if last is None else int(last[self._sort]["N"])
        if last is not None:
            self._query["ExclusiveStartKey"] = last
        keys = [(int(item[self._sort]["N"]), key_in(item)) for item in reply["Items"]]
        return [(Cursor(at, key.id), key) for at, key in keys]


def _order(cursor: Cursor) -> tuple[int, bytes]:
    return cursor.at, cursor.id.encode()
