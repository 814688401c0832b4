"""Listings where every script reaches every key: a session's places in the indexes are part of its commits.

They can differ from the sessions only after somebody else removed keys: by hand, or Redis itself by evicting them.
A place without its session is taken away by the listing that meets it. A session without its place gets it back by its
next turn, or by a scan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from agent_sessions.stores.base import Commit, Committed, Cursor, Found, Key, Keys, Kind, Page
from agent_sessions.stores.redis import scripts
from agent_sessions.stores.redis.connections import Clients, LoopClient
from agent_sessions.stores.redis.keys import Names, encode
from agent_sessions.stores.redis.places import (
    NEVER,
    STAMP_FIELDS,
    Place,
    Repair,
    Stamp,
    pack_find,
    row_of,
    unpack_found,
)
from agent_sessions.stores.redis.registry import Registry

Store = Callable[[bool], Awaitable[Committed | None]]
"""Stores a commit, perhaps only if the session exists; None: it does not."""


class Listing(NamedTuple):
    """What is listed: a tenant's sessions of a kind (of one user)."""

    tenant: str
    kind: Kind
    belongs_to: str | None

    def key(self, id: str) -> Key:
        """One of them."""
        return Key(self.tenant, self.kind, id)


class Met(NamedTuple):
    """A place that a listing met."""

    cursor: Cursor
    """Where it is, or should be."""
    found: Found | None
    """The session, if it belongs into the listing."""
    fix: object = None
    """How to put the place right, if it is wrong."""
    may_wait: bool = False
    """It is put right only by the page that shows it: it goes to the front, where later pages don't look."""


class Indexes:
    """The indexes of a Redis alone."""

    are_elsewhere = False
    """Whether they may be on another server than the session itself."""

    def __init__(self, clients: Clients, names: Names, now: Callable[[], int]) -> None:
        self._clients = clients
        self._names = names
        self._now = now

    # ------------------------------------------------------------------------------------------------- they follow

    async def along(self, key: Key, commit: Commit, held: Registry | None, store: Store) -> Committed:
        """Store a commit, and what it changes here."""
        committed = await store(False)
        assert committed is not None
        return committed

    async def extended(self, key: Key) -> None:
        """The end of a session was moved."""

    async def left(self, key: Key, existed: bool, started_at: int, belongs_to: bytes) -> None:
        """A session was deleted, or there was none."""

    # ------------------------------------------------------------------------------------------------- they are read

    async def find(self, listing: Listing, limit: int, cursor: Cursor | None) -> Page:
        """See `Store.find`."""
        client = self._clients.current()
        indexes = self._keys(listing)
        met: list[Met] = []
        last, room = cursor, limit + 1
        while room > 0:
            now, *flat = await client.run(scripts.FIND, indexes, [pack_find(self._now(), room, last)])
            places = unpack_found(flat)
            is_end = len(places) < room
            met += await self._meet(client, listing, places, int(now), is_end=is_end)
            if is_end:
                break
            last = places[-1].cursor
            room = limit + 1 - sum(one.found is not None for one in met)
        live = [one for one in met if one.found is not None]
        page, after = live[:limit], live[limit:]
        await self._fix(client, listing, [one.fix for one in met if one.fix and not (one.may_wait and one in after)])
        return Page([one.found for one in page if one.found], page[-1].cursor if after else None)

    async def _meet(
        self, client: LoopClient, listing: Listing, places: list[Place], now: int, *, is_end: bool
    ) -> list[Met]:
        """Read the sessions of places."""
        met = []
        for (cursor, end, _), raw in await self._read(client, listing, places):
            id = encode(cursor.id)
            row = row_of(listing.key(cursor.id), raw, now)
            if row is None or listing.belongs_to not in (None, row.belongs_to):
                met.append(Met(cursor, None, Repair(b"F", id, cursor.active_at)))
            else:
                gone_at = NEVER if row.gone_at is None else row.gone_at
                lost = Repair(b"R", id, row.active_at, gone_at) if end is None else None
                met.append(Met(cursor, Found(cursor.id, row), lost))
        return met

    async def _fix(self, client: LoopClient, listing: Listing, fixes: list[Any]) -> None:
        await self._repair(client, self._names.indexes(*listing), fixes)

    async def _read(
        self, client: LoopClient, listing: Listing, places: list[Place]
    ) -> list[tuple[Place, dict[bytes, bytes]]]:
        mains = [self._names.once(listing.key(place.cursor.id)).main for place in places]
        replies = await client.query([(b"HGETALL", main) for main in mains])
        return [(place, dict(scripts.pairs(reply))) for place, reply in zip(places, replies, strict=True)]

    async def count(self, listing: Listing) -> int:
        """See `Store.count`."""
        argv = [scripts.pack_now(self._now())]
        (number,) = await self._clients.current().run(scripts.COUNT, self._keys(listing), argv)
        return int(number)

    async def scan(self, limit: int, cursor: bytes | None) -> Keys:
        """See `Store.scan`. It also gives sessions their places back."""
        client = self._clients.current()
        (server,) = await client.servers()
        asked = (b"SCAN", cursor or b"0", b"MATCH", self._names.pattern, b"COUNT", b"%d" % max(1, limit))
        ((following, mains),) = await client.query_at(server, [asked])
        live = await self._live(client, mains)
        await self._restore(client, live)
        return Keys([key for key, _ in live], None if following == b"0" else following)

    # ------------------------------------------------------------------------------------------------- helpers

    def _keys(self, listing: Listing) -> Sequence[bytes]:
        """What a script needs to read a listing."""
        return self._names.indexes(*listing)

    async def _live(self, client: LoopClient, mains: Sequence[bytes]) -> list[tuple[Key, Stamp]]:
        """Those that are main keys of live sessions, with what they say of themselves."""
        now = await self._time(client)
        records = await client.query([(b"HMGET", main, b"n", *STAMP_FIELDS) for main in mains])
        live = []
        for main, (hashed, *fields) in zip(mains, records, strict=True):
            key, stamp = self._names.key_of(main, hashed), Stamp.read(fields, now)
            if key is not None and stamp is not None:
                live.append((key, stamp))
        return live

    async def _time(self, client: LoopClient) -> int:
        now = self._now()
        if now >= 0:
            return now
        (server, *_) = await client.servers()
        ((seconds, _),) = await client.query_at(server, [(b"TIME",)])
        return int(seconds) * 1000

    async def _restore(self, client: LoopClient, live: list[tuple[Key, Stamp]]) -> None:
        """Give those their places back that have lost them."""
        by_index: dict[tuple[bytes, bytes], list[Repair]] = {}
        for key, stamp in live:
            names = self._names.once(key)
            repair = Repair(b"R", names.member, stamp.active_at, stamp.gone_at)
            by_index.setdefault((names.active_index, names.gone_index), []).append(repair)
            if stamp.belongs_to:
                by_index.setdefault(names.user_indexes(stamp.belongs_to), []).append(repair)
        await asyncio.gather(*(self._repair(client, index, repairs) for index, repairs in by_index.items()))

    async def _repair(self, client: LoopClient, index: tuple[bytes, bytes], repairs: Sequence[Repair]) -> None:
        if repairs:
            arguments = [word for repair in repairs for word in repair.packed()]
            await client.run(scripts.REPAIR, index, [scripts.pack_now(self._now()), *arguments])
