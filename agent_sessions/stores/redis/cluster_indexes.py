"""Listings on a cluster: the indexes may be on another node than a session, so their places follow its commits.

A session is entered before it is made and leaves after it was deleted, so none is ever missing. A later turn moves its
place beside its commit, which takes no time of its own. What a crash in between leaves behind is put right by the next
turn, or by the listing that meets it: it reads the sessions themselves, and goes by what they say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from random import random
from typing import Any, NamedTuple, TypeVar

from msgspec import structs

from agent_sessions.errors import SessionError, StoreUnavailableError
from agent_sessions.stores.base import ABSENT, Commit, Committed, Cursor, Found, Key, Keys, Row
from agent_sessions.stores.redis import life, scripts
from agent_sessions.stores.redis.connections import Clients, Cluster, LoopClient
from agent_sessions.stores.redis.connections.cluster import claimed_slots
from agent_sessions.stores.redis.connections.servers import Address
from agent_sessions.stores.redis.indexes import Indexes, Listing, Met, Store, Stored
from agent_sessions.stores.redis.keys import KeyNames, Names, decode, encode, user_id, user_of
from agent_sessions.stores.redis.places import (
    LAST_OF_A_LIFE,
    STAMP_FIELDS,
    Change,
    Order,
    Place,
    Stamp,
    found_by,
    pack_count,
)
from agent_sessions.stores.redis.registry import Registry
from agent_sessions.stores.redis.slots import SLOTS

logger = logging.getLogger("agent_sessions")

T = TypeVar("T")

PATIENCE_S = 1.0
"""So much longer than the commit itself its place may take. If the indexes are away, a listing puts it right."""

CLOCKS_DIFFER_MS = 1000
"""A place goes by the clock of the node with the index, a record by that of its own node."""

SWEEPS = 1 / 16
"""Of those who make a session, so many look for places past their time, so that no index grows for ever."""

_MOST_SLOTS, _SLOTS_A_PAGE = 256, 2048
_ALL = b"1000000000"
"""More keys than a slot has."""


class _Fix(NamedTuple):
    belongs_to: bytes
    change: Change


class ClusterIndexes(Indexes):
    """The indexes of a cluster."""

    are_elsewhere = True

    def __init__(self, clients: Clients, names: Names, now: Callable[[], int], cluster: Cluster) -> None:
        super().__init__(clients, names, now)
        self._cluster = cluster
        self._under_way: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------------------------------------- they follow

    async def along(self, key: Key, commit: Commit, held: Registry | None, store: Store) -> Committed:
        """See `Indexes.along`."""
        names, user = self._names.of(key), user_id(commit.belongs_to)
        users = {user}
        is_known = held is not None and held.version.revision > 0 and commit.expected != ABSENT
        if held is not None and is_known and not commit.maintenance and (held.belongs_to or not user):
            committed = await self._beside(names, commit, held, store)
            if committed is not None:
                return committed
            users.add(held.belongs_to)  # whose place was moved
        exists = commit.expected is not None and commit.expected != ABSENT
        if user or not exists:  # it is about to get a place
            await self._enter(names, user)
        try:
            stored = await store(False)
        except StoreUnavailableError:
            raise
        except SessionError:
            await self._take_back(names, users)
            raise
        assert stored is not None
        await self._leave_others(names, users, await self._set(names, stored))
        if stored.committed.previous == ABSENT and random() < SWEEPS:
            self._start(self._sweep_all(key, user_of(user)))
        return stored.committed

    async def _enter(self, names: KeyNames, user: bytes) -> None:
        try:
            await self._change(names, user, [Change(b"E", names.member)])
        except StoreUnavailableError as error:
            error.maybe_done = False  # of the commit
            raise

    async def _beside(self, names: KeyNames, commit: Commit, held: Registry, store: Store) -> Committed | None:
        """A later turn: both at once. None: the session does not exist any more."""
        lived = life.unpack(held.life)
        order = Order(lived.course.started_at, lived.writes + 1)
        lives_on = structs.replace(lived, lifetime=commit.lifetime.but(lived.own))
        move = Change(b"M", names.member, order, lives_on.packed(), commit.hold_ms)
        moving = self._start(self._change(names, held.belongs_to, [move]))
        try:
            stored = await store(True)
        except StoreUnavailableError:
            raise
        except SessionError:
            await self._settled(moving)
            await self._take_back(names, {held.belongs_to})
            raise
        moved = await self._settled(moving)
        if stored is None:
            return None
        as_expected = not stored.life or Stamp.of(stored.life, b"").order == order
        if moved is not None and isinstance(moved[0], bytes):
            belongs_to = await self._settled(self._correct(names, moved[0]))
        elif moved is not None and (not as_expected or moved != [1]):
            belongs_to = await self._set(names, stored)
        else:
            return stored.committed
        await self._leave_others(names, {held.belongs_to}, belongs_to)  # others may have made it anew
        return stored.committed

    async def _take_back(self, names: KeyNames, users: set[bytes]) -> None:
        """A place was made, or moved, for a commit that is refused."""
        await self._leave_others(names, users, await self._settled(self._correct(names, b"")))

    async def _leave_others(self, names: KeyNames, users: set[bytes], belongs_to: bytes | None) -> None:
        """Take the places away that a session may have got among those of others, if it is known whose it is."""
        for other in users - {belongs_to, b""} if belongs_to is not None else ():
            await self._settled(self._change(names, other, [Change(b"W", names.member)]))

    async def _set(self, names: KeyNames, stored: Stored) -> bytes | None:
        """Give a session the place that its commit, or by now its record, says; return whose it is, if it exists."""
        row = stored.committed.row
        if row is None:
            return await self._settled(self._correct(names, b""))
        return await self._place(names, Stamp.of(stored.life, user_id(row.belongs_to)))

    async def _place(self, names: KeyNames, stamp: Stamp) -> bytes:
        placed = await self._settled(self._change(names, stamp.belongs_to, [Change.by(stamp, b"S", names.member)]))
        if placed is not None and isinstance(placed[0], bytes):
            await self._settled(self._correct(names, placed[0]))
        return stamp.belongs_to

    async def _correct(self, names: KeyNames, overtaken_by: bytes) -> bytes | None:
        """Give a session the place that its record says, also if a later change was lost; return whose it is."""
        (fields,) = await self._clients.current().query([(b"HMGET", names.main, *STAMP_FIELDS)])
        stamp = Stamp.read(fields, 0)
        if stamp is None:
            return None
        correct = Change.by(stamp, b"C", names.member, overtaken_by)
        if not overtaken_by:
            (placed,) = await self._change(names, stamp.belongs_to, [Change.by(stamp, b"S", names.member)])
            if not isinstance(placed, bytes):
                return stamp.belongs_to
            correct = correct._replace(seen=placed)
        await self._change(names, stamp.belongs_to, [correct])
        return stamp.belongs_to

    async def amended(self, key: Key, life: bytes, belongs_to: bytes) -> None:
        """See `Indexes.amended`."""
        await self._place(self._names.of(key), Stamp.of(life, belongs_to))

    async def changed(self, key: Key) -> None:
        """See `Indexes.changed`."""
        await self._settled(self._correct(self._names.of(key), b""))

    async def left(self, key: Key, existed: bool, started_at: int, belongs_to: bytes) -> None:
        """See `Indexes.left`."""
        names = self._names.of(key)
        change = Change(b"F", names.member)
        if existed:
            change = Change(b"L", names.member, Order(started_at, LAST_OF_A_LIFE))
        await self._settled(self._change(names, belongs_to, [change]))

    # ------------------------------------------------------------------------------------------------- they are read

    async def _meet(
        self, client: LoopClient, listing: Listing, places: list[Place], now: int, *, is_end: bool
    ) -> list[Met]:
        """See `Indexes._meet`. What stands too far in front is met again at its right place, or listed there."""
        met, sorts = [], False
        for place, raw in await self._read(client, listing, places):
            cursor, found = place.cursor, found_by(listing.key(place.cursor.id), raw, now)
            fix = self._fix_of(listing, place, found, raw)
            if found is None or not listing.is_of_its_user(found.row):
                met.append(Met(cursor, None, fix))
                continue
            right, row = Cursor(listing.at(found.row), cursor.id), found.row
            shown = found if listing.is_of_its_status(row, now) else None
            if cursor.at - right.at > CLOCKS_DIFFER_MS:
                is_here = is_end or _order(right) > _order(places[-1].cursor)
                met.append(Met(right, shown if is_here else None, fix))
                sorts = True
            elif right.at - cursor.at > CLOCKS_DIFFER_MS or _differs(place, row, now):
                met.append(Met(cursor, shown, fix, may_wait=True))
            else:
                met.append(Met(cursor, shown))
        return sorted(met, key=lambda one: _order(one.cursor), reverse=True) if sorts else met

    def _fix_of(self, listing: Listing, place: Place, found: Found | None, raw: dict[bytes, bytes]) -> _Fix:
        """How a place is put right, whatever is wrong with it."""
        id = encode(place.cursor.id)
        if found is None:
            return _Fix(user_id(listing.belongs_to), Change(b"F", id, seen=place.order))
        if not listing.is_of_its_user(found.row):
            return _Fix(user_id(listing.belongs_to), Change(b"W", id))
        stamp = Stamp.of(life.of(raw), raw.get(b"b", b""))
        return _Fix(stamp.belongs_to, Change.by(stamp, b"C", id, place.order))

    def _not_run_out(self, listing: Listing, place: Place, found: Found | None, raw: dict[bytes, bytes]) -> object:
        """See `Indexes._not_run_out`."""
        return self._fix_of(listing, place, found, raw)

    async def _settle(self, listing: Listing) -> None:
        """See `Indexes._settle`. It goes by what the sessions themselves say."""
        await self._sweep(listing)

    async def _fix(self, client: LoopClient, listing: Listing, fixes: list[_Fix]) -> None:
        scope = self._names.once(listing.key(""))
        by_user: dict[bytes, list[Change]] = {}
        for belongs_to, change in fixes:
            by_user.setdefault(belongs_to, []).append(change)
        await asyncio.gather(*(self._change(scope, user, changes) for user, changes in by_user.items()))

    async def count(self, listing: Listing) -> int:
        """See `Store.count`. Of places past their time those are told that may be wrong about it."""
        number, put_right = await self._sweep(listing)
        return (await self._sweep(listing))[0] if put_right else number

    async def _sweep_all(self, key: Key, belongs_to: str | None) -> None:
        for user in {None, belongs_to}:
            await self._sweep(Listing(key.tenant, key.kind, user))

    async def _sweep(self, listing: Listing) -> tuple[int, int]:
        """Count, and look after places past their time; return the number, and how many of the places were wrong."""
        client = self._clients.current()
        asked = pack_count(self._now(), listing.status)
        number, *flat = await client.run(scripts.COUNT, self._keys(listing), [asked])
        if not flat:
            return int(number), 0
        ids, orders = flat[::2], flat[1::2]
        mains = [self._names.once(listing.key(decode(id))).main for id in ids]
        records = await client.query([(b"HMGET", main, *STAMP_FIELDS) for main in mains])
        now = await self._time(client)
        fixes = []
        for id, seen, fields in zip(ids, orders, records, strict=True):
            stamp = Stamp.read(fields, now)
            if stamp is None:
                fixes.append(_Fix(user_id(listing.belongs_to), Change(b"F", id, seen=seen or b"")))
            elif listing.belongs_to not in (None, user_of(stamp.belongs_to)):
                fixes.append(_Fix(user_id(listing.belongs_to), Change(b"W", id)))
            else:
                fixes.append(_Fix(stamp.belongs_to, Change.by(stamp, b"C", id, seen or b"")))
        await self._fix(client, listing, fixes)
        return int(number), sum(fix.change.what == b"C" for fix in fixes)

    async def scan(self, limit: int, cursor: bytes | None) -> Keys:
        """See `Store.scan`. It goes slot by slot, so a cursor stays good whichever node has them by then."""
        client = self._clients.current()
        begun = slot = int.from_bytes(cursor or b"")
        mains: list[bytes] = []
        number = 1
        while slot < SLOTS and len(mains) < limit and slot - begun < _SLOTS_A_PAGE:
            slots = range(slot, min(slot + number, SLOTS))
            mains += self._names.mains(await self._keys_in(client, slots))
            slot, number = slots.stop, min(2 * number, _MOST_SLOTS)
        live = await self._live(client, mains)
        await self._restore(client, live)
        return Keys([key for key, _ in live], None if slot >= SLOTS else slot.to_bytes(2))

    async def _keys_in(self, client: LoopClient, slots: range) -> list[bytes]:
        """All keys in these slots. One that is being moved is on two nodes: what its owner lacks, the other has."""
        servers = await client.servers()
        owned = {server: {slot for slot in slots if self._cluster.owner(slot) == server} for server in servers}
        found = await self._ask_for_keys(client, owned)
        claimed = await asyncio.gather(*(client.query_at(server, [(b"CLUSTER", b"NODES")]) for server in servers))
        others = {
            server: claimed_slots(nodes).intersection(slots) - owned[server]
            for server, (nodes,) in zip(servers, claimed, strict=True)
        }
        return list(dict.fromkeys([*found, *await self._ask_for_keys(client, others)]))

    async def _ask_for_keys(self, client: LoopClient, slots: Mapping[Address, Iterable[int]]) -> list[bytes]:
        asked = {server: [_keys_of(slot) for slot in some] for server, some in slots.items() if some}
        replies = await asyncio.gather(*(client.query_at(server, commands) for server, commands in asked.items()))
        return [name for reply in replies for names in reply for name in names]

    async def _restore(self, client: LoopClient, live: list[tuple[Key, Stamp]]) -> None:
        by_index: dict[tuple[bytes, bytes], tuple[KeyNames, list[Change]]] = {}
        for key, stamp in live:
            names = self._names.once(key)
            _, changes = by_index.setdefault((names.scope, stamp.belongs_to), (names, []))
            changes.append(Change.by(stamp, b"R", names.member))
        await asyncio.gather(*(self._change(names, user, changes) for (_, user), (names, changes) in by_index.items()))

    # ------------------------------------------------------------------------------------------------- helpers

    def _keys(self, listing: Listing) -> Sequence[bytes]:
        return [self._names.index(*listing[:3]), self._names.once(listing.key("")).orders]

    async def _change(self, scope: KeyNames, user: bytes, changes: Sequence[Change]) -> list[int | bytes]:
        """Change places of a tenant's sessions of a kind, and of one user, if it is one's; return what came of each."""
        keys = [scope.index, scope.orders]
        if user:
            keys.append(scope.user_index(user))
        arguments = [word for change in changes for word in change.packed()]
        client = self._clients.current()
        return list(await client.run(scripts.INDEX, keys, [scripts.pack_now(self._now()), *arguments]))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | None]:
        """Start what a turn need not wait for. If it fails, a listing puts it right."""

        async def attempt() -> T | None:
            try:
                return await work
            except StoreUnavailableError as error:
                logger.info("a place in a listing could not be changed, and will be put right later: %s", error)
                return None

        task = asyncio.get_running_loop().create_task(attempt(), context=Context())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _settled(self, work: Coroutine[Any, Any, T] | asyncio.Task[T | None]) -> T | None:
        """Wait for it a little; None if it failed, or takes longer."""
        task = work if isinstance(work, asyncio.Task) else self._start(work)
        if not task.done():
            await asyncio.wait((task,), timeout=PATIENCE_S)
        return task.result() if task.done() and not task.cancelled() else None


def _order(cursor: Cursor) -> tuple[int, bytes]:
    return cursor.at, encode(cursor.id)


def _differs(place: Place, row: Row, now: int) -> bool:
    """Whether a place has another end, or status, than its session. Not so much that clocks explain it."""
    right = life.NEVER if row.gone_at is None else row.gone_at
    if place.gone_at is None or abs(place.gone_at - right) > CLOCKS_DIFFER_MS:
        return True
    return place.status != row.stamps.status(now)


def _keys_of(slot: int) -> tuple[bytes, ...]:
    return b"CLUSTER", b"GETKEYSINSLOT", b"%d" % slot, _ALL
