"""The in-memory store: the default, for one process, and the reference for what a store does.

A `threading.Lock` guards everything, is held for microseconds and never across an `await`. So the store may be used
from several event loops and threads at once, and a child process starts with a consistent copy of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from heapq import heapify, heappop, heappush, nsmallest
from typing import NamedTuple, Self
from weakref import WeakSet

import msgspec

from agent_sessions.clock import Clock, SystemClock
from agent_sessions.errors import (
    SessionBusyError,
    SessionNotFoundError,
)
from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    Amended,
    Commit,
    CommitStatus,
    Committed,
    Cursor,
    Found,
    Key,
    Keys,
    Kind,
    Known,
    Lease,
    LeaseWanted,
    LogHead,
    LogRead,
    LogWanted,
    Opened,
    Order,
    Page,
    Part,
    Version,
    Wanted,
)
from agent_sessions.stores.commit_ring import CommitRing, overtaken
from agent_sessions.stores.life import Life
from agent_sessions.stores.lifetime import Status
from agent_sessions.stores.memory.structures import Entries, LogItems, Places
from agent_sessions.stores.memory.turn_queue import TurnQueue, Waker, resolve

DELETES_REMEMBERED_MS = 60_000
"""How long a repeated delete is answered as before."""

SWEPT_PER_COMMIT = 4
"""How many due keys a commit looks at: more than it adds, so that what is past its time does not pile up."""

_ALL = Wanted()


class MemoryStore:
    """Keeps everything in this process, for as long as this object lives."""

    never_waits = True

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._slots: dict[Key, _Slot] = {}
        self._listings: dict[tuple[str, str, str | None], _Listing] = {}
        self._due: list[tuple[int, Key]] = []
        self._deleted: dict[tuple[Key, bytes], _Deleted] = {}
        with _fork_lock:
            _stores.add(self)

    @classmethod
    def from_settings(cls, settings: object) -> Self:
        """Make the store of `AK_SESSION__TYPE=in_memory`, which has no settings of its own."""
        return cls()

    async def open(
        self, key: Key, *, wanted: Wanted = _ALL, known: Known | None = None, lease: LeaseWanted | None = None
    ) -> Opened:
        """See `Store.open`."""
        with self._lock:
            now = self._clock.now_ms()
            slot = self._slot(key, now)
            if slot is None:
                if lease is None:
                    return Opened(now=now, version=ABSENT, row=None)
                slot = self._slots[key] = _Slot()
            turns, state = slot.turns, slot.state
            granted = lease is not None and turns.take(lease, now)
            if state is None or (lease is not None and not granted):
                self._schedule(key, slot)
                return Opened(now, ABSENT, None, granted, turns.lease, len(turns.queue))
            return state.read(now, wanted, known, granted, turns.lease, len(turns.queue))

    async def commit(self, key: Key, commit: Commit) -> Committed:
        """See `Store.commit`."""
        with self._lock:
            now = self._clock.now_ms()
            self._sweep(now, SWEPT_PER_COMMIT)
            slot = self._slot(key, now) or _Slot()
            state = slot.state
            if state is not None and (revision := state.commits.find(commit.id)) is not None:
                return Committed(Version(revision, commit.id), ABSENT, None, b"", {}, repeated=True)
            _check(key, commit, slot, now)
            state = state or _State(Life.begun(commit, now))
            previous, previous_tag = state.commits.version, state.life.record_tag
            heads = state.apply(commit, now)
            self._slots[key], slot.state = slot, state
            self._list(key, state)
            if commit.hold_ms is None:
                slot.turns.hand_over(now)
            else:
                slot.turns.hold(commit.owner, commit.hold_ms, now)
            self._schedule(key, slot)
            return Committed(state.commits.version, previous, state.life.row(None), previous_tag, heads)

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """See `Store.amend`."""
        with self._lock:
            now = self._clock.now_ms()
            slot = self._slot(key, now)
            if slot is None or slot.state is None:
                raise _not_found(key)
            state = slot.state
            changed = state.life.amend(amend, now, _name(key))
            if changed:
                if slot.turns.lease is not None:
                    state.life.prolong(slot.turns.lease.until)
                _update(state.fields, amend.fields.items())
                self._list(key, state)
                self._schedule(key, slot)
            return Amended(now, state.life.row(state.fields.copy()), changed, state.commits.revision)

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> CommitStatus:
        """See `Store.commit_status`."""
        with self._lock:
            slot = self._slot(key, self._clock.now_ms())
            if slot is None or slot.state is None:
                return "not_stored" if since == ABSENT else "unknown"
            return slot.state.commits.status(commit_id, since)

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        """See `Store.renew`."""
        with self._lock:
            now = self._clock.now_ms()
            slot = self._slot(key, now)
            if slot is None or slot.turns.lease is None or slot.turns.lease.owner != owner:
                return False
            slot.turns.hold(owner, ms, now)
            if slot.state is not None:
                slot.state.life.prolong(now + ms)
                self._list(key, slot.state)
            self._schedule(key, slot)
            return True

    async def release(self, key: Key, owner: str) -> None:
        """See `Store.release`."""
        with self._lock:
            now = self._clock.now_ms()
            slot = self._slot(key, now)
            if slot is None:
                return
            slot.turns.leave(owner)
            if slot.turns.lease is None or slot.turns.lease.owner == owner:
                slot.turns.hand_over(now)
            self._schedule(key, slot)

    async def unlock(self, key: Key) -> Lease | None:
        """See `Store.unlock`."""
        with self._lock:
            now = self._clock.now_ms()
            slot = self._slot(key, now)
            if slot is None or slot.turns.lease is None:
                return None
            broken = slot.turns.lease
            slot.turns.hand_over(now)
            self._schedule(key, slot)
            return broken

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        """See `Store.wait`. Returns as well when the lease runs out and the owner is the first in the queue."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            with self._lock:
                now = self._clock.now_ms()
                slot = self._slot(key, now)
                pause = min(0.0 if slot is None else slot.turns.pause(owner, now), end - loop.time())
                if slot is None or pause <= 0:
                    return
                place = slot.turns.queue[owner]
                woken: asyncio.Future[None] = loop.create_future()
                place.waker = Waker(loop, woken)
            timer = loop.call_later(pause, resolve, woken)
            try:
                await woken
            finally:
                timer.cancel()
                place.waker = None

    async def delete(self, key: Key, write_id: bytes) -> bool:
        """See `Store.delete`. The lease goes with the key; the next waiter gets one on what is absent then."""
        with self._lock:
            now = self._clock.now_ms()
            self._forget_deletes(now)
            if (repeated := self._deleted.get((key, write_id))) is not None:
                return repeated.existed
            slot = self._slot(key, now)
            existed = slot is not None and slot.state is not None
            if slot is not None and existed:
                self._drop_state(key, slot)
                slot.turns.hand_over(now)
                self._schedule(key, slot)
            self._deleted[key, write_id] = _Deleted(now + DELETES_REMEMBERED_MS, existed)
            return existed

    async def find(
        self,
        tenant: str,
        kind: Kind,
        *,
        belongs_to: str | None = None,
        status: Status | None = None,
        order: Order = "activity",
        limit: int = 50,
        cursor: Cursor | None = None,
    ) -> Page:
        """See `Store.find`."""
        with self._lock:
            now = self._clock.now_ms()
            self._sweep(now, None)
            listing = self._listings.get((tenant, kind, belongs_to))
            if listing is None or limit < 1:
                return Page(now, [], None)
            places = listing.by_activity if order == "activity" else listing.by_start
            found: list[Found] = []
            last: Cursor | None = None
            for at, id in places.newest_first(cursor):
                state = self._slots[Key(tenant, kind, id)].state
                assert state is not None  # listed means stored
                if status is not None and state.life.stamps.status(now) != status:
                    continue
                if len(found) == limit:
                    return Page(now, found, last)
                found.append(state.found(id))
                last = Cursor(at, id)
            return Page(now, found, None)

    async def count(
        self, tenant: str, kind: Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        """See `Store.count`."""
        with self._lock:
            now = self._clock.now_ms()
            self._sweep(now, None)
            listing = self._listings.get((tenant, kind, belongs_to))
            return 0 if listing is None else listing.count(status, now)

    async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
        """See `Store.run_out`."""
        with self._lock:
            now = self._clock.now_ms()
            self._sweep(now, None)
            listing = self._listings.get((tenant, kind, None))
            found = []
            for id in [] if listing is None else listing.run_out(now, limit):
                state = self._slots[Key(tenant, kind, id)].state
                assert state is not None
                found.append(state.found(id))
            return Page(now, found, None)

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        """See `Store.scan`."""
        with self._lock:
            self._sweep(self._clock.now_ms(), None)
            after = None if cursor is None else msgspec.msgpack.decode(cursor, type=Key)
            live = (key for key, slot in self._slots.items() if slot.state is not None and (not after or key > after))
            keys = nsmallest(max(1, limit), live)
            return Keys(keys, msgspec.msgpack.encode(keys[-1]) if len(keys) >= limit else None)

    async def detach(self) -> None:
        """Nothing is held for a loop."""

    async def aclose(self) -> None:
        """Nothing is opened; what is stored stays."""

    # ------------------------------------------------------------------------ under the lock

    def _slot(self, key: Key, now: int) -> _Slot | None:
        """What there is under a key, without what is past its time."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        slot.turns.tidy(now)
        state = slot.state
        if state is not None and state.life.is_over(now):
            self._drop_state(key, slot)
        return slot

    def _drop_state(self, key: Key, slot: _Slot) -> None:
        if slot.state is None:
            return
        for name, listing in slot.state.listed:
            listing.remove(key[2])
            if not listing.states and self._listings.get(name) is listing:
                del self._listings[name]
        slot.state = None

    def _list(self, key: Key, state: _State) -> None:
        """Bring the listings up to date. A user's is added when the user becomes known."""
        tenant, kind, id = key
        wanted = 1 if state.life.belongs_to is None else 2
        if len(state.listed) < wanted:
            names = [(tenant, kind, None), (tenant, kind, state.life.belongs_to)]
            state.listed = [(name, self._listings.setdefault(name, _Listing())) for name in names[:wanted]]
        for _, listing in state.listed:
            listing.put(id, state)

    def _schedule(self, key: Key, slot: _Slot) -> None:
        """See that the sweep looks at a slot when there is something to drop, or forget it if it is empty now.

        A slot has one valid entry in the heap. If its time has moved on, the sweep enters it again.
        """
        due = slot.due()
        if due == 0:
            self._slots.pop(key, None)
        elif due is not None and (slot.scheduled is None or due < slot.scheduled):
            slot.scheduled = due
            heappush(self._due, (due, key))
            if len(self._due) > 2 * len(self._slots) + 64:  # most are of keys that were deleted early
                self._due = [(slot.scheduled, key) for key, slot in self._slots.items() if slot.scheduled is not None]
                heapify(self._due)

    def _sweep(self, now: int, limit: int | None) -> None:
        """Drop what is past its time: all of it, or look at so many slots."""
        while self._due and self._due[0][0] <= now and limit != 0:
            if limit is not None:
                limit -= 1
            at, key = heappop(self._due)
            slot = self._slots.get(key)
            if slot is not None and slot.scheduled == at:
                slot.scheduled = None
                self._slot(key, now)
                self._schedule(key, slot)

    def _forget_deletes(self, now: int) -> None:
        while self._deleted:
            oldest = next(iter(self._deleted))
            if self._deleted[oldest].until > now:
                return
            del self._deleted[oldest]


# --------------------------------------------------------------------------------------------------- a key's state


class _Slot:
    """All that the store has under a key."""

    __slots__ = ("scheduled", "state", "turns")

    def __init__(self) -> None:
        self.state: _State | None = None
        self.turns = TurnQueue()
        self.scheduled: int | None = None

    def due(self) -> int | None:
        """When there is something to drop: 0 if there is nothing left, None if never."""
        return self.turns.ends_at() if self.state is None else self.state.life.stamps.gone_at


class _Deleted(NamedTuple):
    """The answer to a delete, for those who repeat it."""

    until: int
    existed: bool


class _Listing:
    """The keys of one kind and tenant, or of one owner, in their orders."""

    __slots__ = ("by_activity", "by_start", "states")

    def __init__(self) -> None:
        self.by_activity = Places()
        self.by_start = Places()
        self.states: dict[str, _State] = {}

    def put(self, id: str, state: _State) -> None:
        self.by_activity.put(state.life.course.active_at, id)
        self.by_start.put(state.life.course.started_at, id)
        self.states[id] = state

    def remove(self, id: str) -> None:
        self.by_activity.remove(id)
        self.by_start.remove(id)
        self.states.pop(id, None)

    def count(self, status: Status | None, now: int) -> int:
        """How many there are; by status, each is looked at."""
        if status is None:
            return len(self.states)
        return sum(state.life.stamps.status(now) == status for state in self.states.values())

    def run_out(self, now: int, limit: int) -> list[str]:
        """Those that have ended without having been ended, the longest ago first."""
        ran_out = (
            (life.stamps.ends_at, id)
            for id, life in ((id, state.life) for id, state in self.states.items())
            if life.course.ended_at is None and life.stamps.status(now) == "ended"
        )
        return [id for _, id in nsmallest(limit, ran_out)]


class _State:
    """What is stored under a key."""

    __slots__ = (
        "collection_revisions",
        "collections",
        "commits",
        "fields",
        "life",
        "listed",
        "log_heads",
        "logs",
        "value_revisions",
        "values",
    )

    def __init__(self, life: Life) -> None:
        self.life = life
        self.commits = CommitRing()
        self.fields: dict[str, bytes] = {}
        self.values: dict[str, dict[str, bytes]] = {}
        self.value_revisions: dict[str, int] = {}
        self.logs: dict[Part, LogItems] = {}
        self.log_heads: dict[Part, LogHead] = {}
        self.collections: dict[Part, Entries] = {}
        self.collection_revisions: dict[Part, int] = {}
        self.listed: list[tuple[tuple[str, str, str | None], _Listing]] = []

    def found(self, id: str) -> Found:
        """As a listing shows it."""
        return Found(id, self.life.row(self.fields.copy()), self.commits.revision)

    def read(
        self, now: int, wanted: Wanted, known: Known | None, granted: bool, lease: Lease | None, waiters: int
    ) -> Opened:
        since = known.version.revision if known is not None and self.commits.has(known.version) else 0
        same_record = known is not None and known.record_tag == self.life.record_tag
        return Opened(
            now=now,
            version=self.commits.version,
            row=self.life.row(None if same_record else self.fields.copy()),
            granted=granted,
            lease=lease,
            waiters=waiters,
            continues=since > 0,
            values=self._values_since(since) if wanted.values else {},
            log_heads=self.log_heads.copy(),
            collections=self.collection_revisions.copy(),
            logs=[self._read_log(log, usable=since > 0) for log in wanted.logs],
            entries=[self._entries(part).by_key.get(name) for part, name in wanted.entries],
            ranges=[self._entries(wanted_range.part).range(wanted_range) for wanted_range in wanted.ranges],
        )

    def apply(self, commit: Commit, now: int) -> dict[Part, LogHead]:
        """Change the state; return the heads of the logs that changed."""
        self.commits.add(commit.id)
        self.life.commit(commit, now)
        _update(self.fields, commit.fields.items())
        for part, value in commit.values.items():
            self.value_revisions[part[0]] = self.commits.revision
            _update(self.values.setdefault(part[0], {}), ((part[1], value),))
        heads = {part: self.logs.setdefault(part, LogItems()).change(change) for part, change in commit.logs.items()}
        self.log_heads.update(heads)
        for part, changed in commit.collections.items():
            entries = self.collections.setdefault(part, Entries())
            entries.change(changed)
            self.collection_revisions[part] = self.commits.revision
            if not entries.by_key:
                del self.collections[part], self.collection_revisions[part]
        return heads

    def _values_since(self, revision: int) -> dict[str, dict[str, bytes]]:
        """The namespaces that changed since; from the beginning (0), those that hold a value."""
        return {
            namespace: values.copy()
            for namespace, values in self.values.items()
            if self.value_revisions[namespace] > revision and (values or revision)
        }

    def _read_log(self, wanted: LogWanted, *, usable: bool) -> LogRead:
        log = self.logs.get(wanted.part, _EMPTY_LOG)
        if usable and log.follows(wanted.count, wanted.last):
            return LogRead(log.head, log.since(wanted.count), True)
        return LogRead(log.head, log.window(wanted.limit), False)

    def _entries(self, part: Part) -> Entries:
        return self.collections.get(part, _EMPTY_COLLECTION)


_EMPTY_LOG = LogItems()
_EMPTY_COLLECTION = Entries()


def _update(kept: dict[str, bytes], changes: Iterable[tuple[str, bytes | None]]) -> None:
    for name, value in changes:
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = value


def _check(key: Key, commit: Commit, slot: _Slot, now: int) -> None:
    """Raise what keeps a commit that is not stored yet from being stored."""
    expected, state, lease = commit.expected, slot.state, slot.turns.lease
    if state is None and expected is not None and expected != ABSENT:
        raise _not_found(key)
    if state is not None and not commit.maintenance:
        state.life.refuse_ended(now, _name(key))
    if state is not None and expected is not None and expected != state.commits.version:
        raise overtaken(_name(key), commit, state.commits.revision)
    if lease is not None and lease.owner != commit.owner:
        raise SessionBusyError(f"{_name(key)} is held by {lease.owner} for another {lease.until - now} ms")


def _not_found(key: Key) -> SessionNotFoundError:
    return SessionNotFoundError(f"{_name(key)} does not exist, was deleted, or is past its time")


def _name(key: Key) -> str:
    tenant, kind, id = key
    return f"{kind} {id!r} of tenant {tenant!r}"


# --------------------------------------------------------------------------------------------------- fork


_stores: WeakSet[MemoryStore] = WeakSet()
_fork_lock = threading.Lock()
_locked: list[MemoryStore] = []


def _before_fork() -> None:
    """Wait until no thread is in the middle of a change: the child gets what is whole."""
    _fork_lock.acquire()
    for store in list(_stores):
        store._lock.acquire()
        _locked.append(store)


def _after_fork_in_parent() -> None:
    for store in _locked:
        store._lock.release()
    _locked.clear()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    """Start with locks of our own, and leave the parent's waiters to the parent."""
    global _fork_lock
    _fork_lock = threading.Lock()
    for store in _locked:
        store._lock = threading.Lock()
        for slot in store._slots.values():
            slot.turns.queue.clear()
    _locked.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
