"""A store of somebody else's, written from `agent_sessions.stores.base` alone: dictionaries and a lock.

It is complete and correct, and simple where a real backend would be fast: a commit copies the whole state.
"""

from __future__ import annotations

import asyncio
import threading
import time
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from agent_sessions.clock import Clock, SystemClock
from agent_sessions.errors import CommitUnknownError, SessionBusyError, SessionConflictError, SessionNotFoundError
from agent_sessions.stores import base
from agent_sessions.stores.base import ABSENT, Commit, Key, Lease, LogHead, Part, Row, Version, Wanted


@dataclass
class State:
    """A key after a commit."""

    row: Row
    version: Version = ABSENT
    fields: dict[str, bytes] = field(default_factory=dict)
    values: dict[str, dict[str, bytes]] = field(default_factory=dict)
    logs: dict[Part, list[tuple[int, bytes]]] = field(default_factory=dict)
    assigned: dict[Part, int] = field(default_factory=dict)
    collections: dict[Part, dict[str, bytes]] = field(default_factory=dict)
    changed: dict[Part, int] = field(default_factory=dict)

    def head(self, part: Part) -> LogHead:
        items = self.logs.get(part)
        return LogHead(len(items), items[-1][0]) if items else LogHead(0, 0)


class DictStore:
    never_waits = False

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.lock = threading.Lock()
        self.history: dict[Key, list[State]] = {}
        self.leases: dict[Key, Lease] = {}
        self.queues: dict[Key, dict[str, int]] = {}
        self.deleted: dict[tuple[Key, bytes], tuple[int, bool]] = {}

    async def open(
        self,
        key: Key,
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 - frozen
        known: base.Known | None = None,
        lease: base.LeaseWanted | None = None,
    ) -> base.Opened:
        with self.lock:
            now, history = self.tidy(key)
            granted = lease is not None and self.take(key, lease, now)
            held, waiters = self.leases.get(key), len(self.queues.get(key, ()))
            if not history or (lease is not None and not granted):
                return base.Opened(now=now, version=ABSENT, row=None, granted=granted, lease=held, waiters=waiters)
            state = history[-1]
            seen = next((old for old in history if known is not None and old.version == known.version), None)
            before = seen.values if seen is not None else {}
            changed = {namespace for namespace in state.values if state.values[namespace] != before.get(namespace)}
            same_record = known is not None and known.record_tag == state.row.record_tag
            return base.Opened(
                now=now,
                version=state.version,
                row=replace(state.row, fields=None if same_record else dict(state.fields)),
                granted=granted,
                lease=held,
                waiters=waiters,
                continues=seen is not None,
                values={namespace: dict(state.values[namespace]) for namespace in changed if wanted.values},
                log_heads={part: state.head(part) for part in state.logs},
                collections=dict(state.changed),
                logs=[read_log(state, log, seen is not None) for log in wanted.logs],
                entries=[state.collections.get(part, {}).get(name) for part, name in wanted.entries],
                ranges=[read_range(state.collections.get(asked.part, {}), asked) for asked in wanted.ranges],
            )

    async def commit(self, key: Key, commit: Commit) -> base.Committed:
        with self.lock:
            now, history = self.tidy(key)
            for state in history:
                if state.version.commit_id == commit.id:
                    return base.Committed(state.version, ABSENT, None, {}, repeated=True)
            previous = history[-1].version if history else ABSENT
            if not history and commit.expected not in (None, ABSENT):
                raise SessionNotFoundError(f"{key.id!r} does not exist")
            if key in self.leases and self.leases[key].owner != commit.owner:
                raise SessionBusyError(f"{key.id!r} is held by {self.leases[key].owner}")
            if commit.expected is not None and commit.expected != previous:
                if previous.revision - commit.expected.revision > base.COMMITS_REMEMBERED:
                    raise CommitUnknownError(f"too many commits since on {key.id!r}", commit_id=commit.id.hex())
                raise SessionConflictError(f"{key.id!r} is at another version")
            state = deepcopy(history[-1]) if history else State(Row(now, now, None, None, commit.id, None))
            apply(state, commit, now)
            self.history[key] = [*history, state][-base.COMMITS_REMEMBERED :]
            if commit.hold_ms is None:
                self.end_turn(key, now)
            else:
                self.hold(key, commit.owner, commit.hold_ms, now)
            return base.Committed(state.version, previous, state.row, {part: state.head(part) for part in commit.logs})

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> base.CommitStatus:
        with self.lock:
            versions = [state.version for state in self.tidy(key)[1]]
            if any(version.commit_id == commit_id for version in versions):
                return "stored"
            complete = since in versions or since.revision == (versions[0].revision - 1 if versions else 0)
            return "not_stored" if complete else "unknown"

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        with self.lock:
            now, history = self.tidy(key)
            if key not in self.leases or self.leases[key].owner != owner:
                return False
            self.hold(key, owner, ms, now)
            gone_at = history[-1].row.gone_at if history else None
            if gone_at is not None:
                history[-1].row = replace(history[-1].row, gone_at=max(gone_at, now + ms))
            return True

    async def release(self, key: Key, owner: str) -> None:
        with self.lock:
            now, _ = self.tidy(key)
            self.queues.get(key, {}).pop(owner, None)
            if key in self.leases and self.leases[key].owner == owner:
                self.end_turn(key, now)

    async def unlock(self, key: Key) -> Lease | None:
        with self.lock:
            now, _ = self.tidy(key)
            broken = self.leases.get(key)
            if broken is not None:
                self.end_turn(key, now)
            return broken

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        end = time.monotonic() + min(seconds, 1.0)  # who asks again in time keeps the place
        while time.monotonic() < end:
            with self.lock:
                self.tidy(key)
                next_owner = self.leases[key].owner if key in self.leases else next(iter(self.queues[key]), owner)
            if next_owner == owner:
                return
            await asyncio.sleep(0.002)

    async def delete(self, key: Key, write_id: bytes) -> bool:
        with self.lock:
            now, history = self.tidy(key)
            self.deleted = {write: done for write, done in self.deleted.items() if done[0] + 60_000 > now}
            if (key, write_id) not in self.deleted:
                self.deleted[key, write_id] = now, bool(history)
                if self.history.pop(key, None) is not None:
                    self.end_turn(key, now)
            return self.deleted[key, write_id][1]

    async def find(
        self,
        tenant: str,
        kind: base.Kind,
        *,
        belongs_to: str | None = None,
        limit: int = 50,
        cursor: base.Cursor | None = None,
    ) -> base.Page:
        listed = self.listed(tenant, kind, belongs_to)
        listed = [found for found in listed if cursor is None or (found.row.active_at, found.id) < cursor]
        page = sorted(listed, key=lambda found: (found.row.active_at, found.id), reverse=True)[:limit]
        return base.Page(page, base.Cursor(page[-1].row.active_at, page[-1].id) if len(listed) > limit else None)

    async def count(self, tenant: str, kind: base.Kind, *, belongs_to: str | None = None) -> int:
        return len(self.listed(tenant, kind, belongs_to))

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> base.Keys:
        with self.lock:
            live = {repr(key).encode(): key for key in list(self.history) if self.tidy(key)[1]}
        names = sorted(name for name in live if cursor is None or name > cursor)
        return base.Keys([live[name] for name in names[:limit]], names[limit - 1] if len(names) > limit else None)

    async def detach(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def listed(self, tenant: str, kind: base.Kind, belongs_to: str | None) -> list[base.Found]:
        with self.lock:
            keys = [key for key in self.history if (key.tenant, key.kind) == (tenant, kind)]
            states = [(key.id, history[-1]) for key in keys if (history := self.tidy(key)[1])]
        found = [base.Found(id, replace(state.row, fields=dict(state.fields))) for id, state in states]
        return [place for place in found if belongs_to in (None, place.row.belongs_to)]

    def tidy(self, key: Key) -> tuple[int, list[State]]:
        """Drop what is past its time; return the time, and what there is of the key."""
        now, queue = self.clock.now_ms(), self.queues.get(key, {})
        if key in self.history and (self.history[key][-1].row.gone_at or now + 1) <= now:
            del self.history[key]
        if key in self.leases and self.leases[key].until <= now:
            del self.leases[key]
        self.queues[key] = {who: asked for who, asked in queue.items() if asked + base.HANDOVER_MS > now}
        return now, self.history.get(key, [])

    def take(self, key: Key, lease: base.LeaseWanted, now: int) -> bool:
        queue, held = self.queues[key], self.leases.get(key)
        if (held.owner if held is not None else next(iter(queue), lease.owner)) == lease.owner:
            self.hold(key, lease.owner, lease.ms, now)
            return True
        if lease.queue:
            queue[lease.owner] = now
        return False

    def hold(self, key: Key, owner: str, ms: int, now: int) -> None:
        self.queues[key].pop(owner, None)
        self.leases[key] = Lease(owner, self.leases[key].since if key in self.leases else now, now + ms)

    def end_turn(self, key: Key, now: int) -> None:
        self.leases.pop(key, None)
        for owner in list(self.queues[key])[:1]:
            self.hold(key, owner, base.HANDOVER_MS, now)


def apply(state: State, commit: Commit, now: int) -> None:
    state.version = Version(state.version.revision + 1, commit.id)
    active_at, gone_at = now, None if commit.ttl_ms is None else now + commit.ttl_ms
    if commit.maintenance:
        active_at, gone_at = state.row.active_at, state.row.gone_at
    belongs_to = commit.belongs_to if state.row.belongs_to is None else state.row.belongs_to
    tag = commit.id if commit.fields else state.row.record_tag
    state.row = Row(state.row.started_at, active_at, gone_at, belongs_to, tag, None)
    merge(state.fields, commit.fields)
    for part, data in commit.values.items():
        merge(state.values.setdefault(part.namespace, {}), {part.name: data})
    for part, log in commit.logs.items():
        items = state.logs.setdefault(part, [])
        del items[0 if log.clear else max(0, len(items) - log.pop) :]
        items += enumerate(log.append, state.assigned.get(part, 0) + 1)
        state.assigned[part] = state.assigned.get(part, 0) + len(log.append)
    for part, change in commit.collections.items():
        gone, entries = tuple(change.delete_prefixes), state.collections.pop(part, {})
        entries = {name: data for name, data in entries.items() if not name.startswith(gone)}
        merge(entries, change.entries)
        state.changed.pop(part, None)
        if entries:
            state.collections[part], state.changed[part] = entries, state.version.revision


def merge(kept: dict[str, Any], changes: dict[str, Any]) -> None:
    kept.update(changes)
    for name in [name for name, data in changes.items() if data is None]:
        del kept[name]


def read_log(state: State, wanted: base.LogWanted, continues: bool) -> base.LogRead:
    items = state.logs.get(wanted.part, [])
    if continues and 0 < wanted.count <= len(items) and items[wanted.count - 1][0] == wanted.last:
        return base.LogRead(state.head(wanted.part), [data for _, data in items[wanted.count :]], True)
    start = 0 if wanted.limit is None else max(0, len(items) - wanted.limit)
    return base.LogRead(state.head(wanted.part), [data for _, data in items[start:]], False)


def read_range(entries: dict[str, bytes], wanted: base.EntryRange) -> list[tuple[str, bytes]]:
    names = sorted(name for name in entries if name.startswith(wanted.prefix))
    names = [name for name in names if wanted.after is None or name > wanted.after]
    names = [name for name in names if wanted.before is None or name < wanted.before]
    return [(name, entries[name]) for name in (names[::-1] if wanted.reverse else names)[: wanted.limit]]
