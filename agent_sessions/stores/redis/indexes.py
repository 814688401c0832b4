"""Listings where every script reaches every key: a session's places in the indexes are part of its commits.

They can differ from the sessions only after somebody else removed keys: by hand, or Redis itself by evicting them.
A place without its session is taken away by the listing that meets it. A session without its place gets it back by its
next turn, or by a scan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple

from agent_sessions.stores.base import Commit, Committed, Cursor, Found, Key, Keys, Kind, Order, Page, Row
from agent_sessions.stores.lifetime import Status
from agent_sessions.stores.redis import scripts
from agent_sessions.stores.redis.connections import Clients, LoopClient
from agent_sessions.stores.redis.keys import Names, encode
from agent_sessions.stores.redis.places import (
    ROLES,
    STAMP_FIELDS,
    Place,
    Repair,
    Stamp,
    found_by,
    pack_count,
    pack_find,
    pack_run_out,
    unpack_found,
    unpack_run_out,
)
from agent_sessions.stores.redis.registry import Registry


class Stored(NamedTuple):
    """A commit that is stored, and the life of the session since, as the scripts pack it (empty: it was repeated)."""

    committed: Committed
    life: bytes


Store = Callable[[bool], Awaitable[Stored | None]]
"""Stores a commit, perhaps only if the session exists; None: it does not."""


_RUN_OUT_TRIES = 8


class Listing(NamedTuple):
    """What is listed: a tenant's sessions of a kind (of one user, of one status), and in what order."""

    tenant: str
    kind: Kind
    belongs_to: str | None = None
    status: Status | None = None
    order: Order = "activity"

    def key(self, id: str) -> Key:
        """One of them."""
        return Key(self.tenant, self.kind, id)

    def at(self, row: Row) -> int:
        """The time by which a session has its place."""
        return row.active_at if self.order == "activity" else row.started_at

    def is_of_its_user(self, row: Row) -> bool:
        """Whether a session is of the user whose are listed."""
        return self.belongs_to in (None, row.belongs_to)

    def is_of_its_status(self, row: Row, now: int) -> bool:
        """Whether a session has the status of those that are listed."""
        return self.status in (None, row.stamps.status(now))


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
        stored = await store(False)
        assert stored is not None
        return stored.committed

    async def amended(self, key: Key, life: bytes, belongs_to: bytes) -> None:
        """A session was amended, now or when its amendment was sent before."""

    async def changed(self, key: Key) -> None:
        """A session has other times without an activity."""

    async def left(self, key: Key, existed: bool, started_at: int, belongs_to: bytes) -> None:
        """A session was deleted, or there was none."""

    # ------------------------------------------------------------------------------------------------- they are read

    async def find(self, listing: Listing, limit: int, cursor: Cursor | None) -> Page:
        """See `Store.find`."""
        client = self._clients.current()
        indexes = self._keys(listing)
        met: list[Met] = []
        last, room, now = cursor, limit + 1, 0
        while room > 0:
            asked = pack_find(self._now(), room, last, listing.order, listing.status)
            now, unsettled, *flat = await client.run(scripts.FIND, indexes, [asked])
            if unsettled:
                await self._settle(listing)
                continue
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
        return Page(int(now), [one.found for one in page if one.found], page[-1].cursor if after else None)

    async def _settle(self, listing: Listing) -> None:
        """Do what the script left to be done: nothing, it goes on by itself when it is asked again."""

    async def _meet(
        self, client: LoopClient, listing: Listing, places: list[Place], now: int, *, is_end: bool
    ) -> list[Met]:
        """Read the sessions of places."""
        met = []
        for place, raw in await self._read(client, listing, places):
            found = found_by(listing.key(place.cursor.id), raw, now)
            if found is None or not listing.is_of_its_user(found.row):
                met.append(Met(place.cursor, None, _forget(place, ROLES[listing.order])))
            else:
                met.append(Met(place.cursor, found if listing.is_of_its_status(found.row, now) else None))
        return met

    async def run_out(self, listing: Listing, limit: int) -> Page:
        """See `Store.run_out`."""
        client, indexes = self._clients.current(), self._keys(listing)
        for _ in range(_RUN_OUT_TRIES):
            now, more, *flat = await client.run(scripts.RUN_OUT, indexes, [pack_run_out(self._now(), limit)])
            places, found, fixes = unpack_run_out(flat), list[Found](), []
            for place, raw in await self._read(client, listing, places):
                one = found_by(listing.key(place.cursor.id), raw, int(now))
                if one is not None and one.row.ended_at is None and one.row.stamps.status(int(now)) == "ended":
                    found.append(one)
                elif (fix := self._not_run_out(listing, place, one, raw)) is not None:
                    fixes.append(fix)
            await self._fix(client, listing, fixes)
            if len(found) == limit or (len(places) < limit and not more):
                break
        return Page(int(now), found, None)

    def _not_run_out(self, listing: Listing, place: Place, found: Found | None, raw: dict[bytes, bytes]) -> object:
        """How to put the place right of what is gone, or has not run out; None if it is right by now."""
        if found is None:
            return _forget(place, b"e")
        return None if found.row.ended_at is None else _repair(b"E", place, b"e")

    async def _fix(self, client: LoopClient, listing: Listing, fixes: list[Any]) -> None:
        await self._repair(client, self._names.index(*listing[:3]), fixes)

    async def _read(
        self, client: LoopClient, listing: Listing, places: list[Place]
    ) -> list[tuple[Place, dict[bytes, bytes]]]:
        mains = [self._names.once(listing.key(place.cursor.id)).main for place in places]
        replies = await client.query([(b"HGETALL", main) for main in mains])
        return [(place, dict(scripts.pairs(reply))) for place, reply in zip(places, replies, strict=True)]

    async def count(self, listing: Listing) -> int:
        """See `Store.count`."""
        argv = [pack_count(self._now(), listing.status)]
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
        return [self._names.index(*listing[:3])]

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
        by_index: dict[bytes, list[Repair]] = {}
        for key, stamp in live:
            names = self._names.once(key)
            repair = Repair(b"R", names.member, life=stamp.life)
            by_index.setdefault(names.index, []).append(repair)
            if stamp.belongs_to:
                by_index.setdefault(names.user_index(stamp.belongs_to), []).append(repair)
        await asyncio.gather(*(self._repair(client, index, repairs) for index, repairs in by_index.items()))

    async def _repair(self, client: LoopClient, index: bytes, repairs: Sequence[Repair]) -> None:
        if repairs:
            arguments = [word for repair in repairs for word in repair.packed()]
            await client.run(scripts.REPAIR, [index], [scripts.pack_now(self._now()), *arguments])


def _forget(place: Place, role: bytes) -> Repair:
    return _repair(b"F", place, role)


def _repair(what: Literal[b"F", b"E"], place: Place, role: bytes) -> Repair:
    return Repair(what, encode(place.cursor.id), role, place.cursor.at)
