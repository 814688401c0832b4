"""A store written from `agent_sessions.stores.base` alone: a folder with one file for each key.

It is complete, safe and small, not fast: every step reads a file and writes it anew, under one lock for the folder.
Any number of processes on one machine may share the folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent_sessions import Settings
from agent_sessions.clock import Clock, SystemClock
from agent_sessions.errors import (
    CommitUnknownError,
    FormatTooNewError,
    SessionBusyError,
    SessionConflictError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from agent_sessions.stores import base
from agent_sessions.stores.base import ABSENT, Commit, Key, Lease, LogHead, Part, Version, Wanted
from agent_sessions.stores.life import Life
from agent_sessions.stores.lifetime import Status

T = TypeVar("T")

DELETES_REMEMBERED_MS = 60_000
POLL_S = 0.005


class Log(msgspec.Struct):
    """A log: its items with their sequence numbers, and the highest number ever given."""

    items: list[tuple[int, bytes]] = []
    issued: int = 0

    @property
    def head(self) -> LogHead:
        return LogHead(len(self.items), self.items[-1][0]) if self.items else LogHead(0, 0)


class State(msgspec.Struct):
    """What a key holds. Values and collections have the revision that last changed them beside them."""

    life: Life
    versions: list[Version] = []
    fields: dict[str, bytes] = {}
    values: dict[str, tuple[int, dict[str, bytes]]] = {}
    logs: dict[str, dict[str, Log]] = {}
    collections: dict[str, dict[str, tuple[int, dict[str, bytes]]]] = {}

    @property
    def version(self) -> Version:
        return self.versions[-1]

    def log(self, part: Part) -> Log:
        return self.logs.get(part.namespace, {}).get(part.name) or Log()

    def entries(self, part: Part) -> dict[str, bytes]:
        return self.collections.get(part.namespace, {}).get(part.name, (0, {}))[1]


class File(msgspec.Struct):
    """What a file holds: the key's name, its state if it has one, and who works on it."""

    key: Key
    format: int = base.FORMAT
    state: State | None = None
    lease: Lease | None = None
    queue: dict[str, int] = {}
    """Waiting owners, and when each asked last."""
    deleted: dict[str, tuple[int, bool]] = {}
    """The write ids of deletes: when, and whether there was something."""

    def tidy(self, now: int) -> None:
        """Drop what is past its time."""
        if self.state is not None and self.state.life.is_over(now):
            self.state = None
        if self.lease is not None and self.lease.until <= now:
            self.lease = None
        self.queue = {owner: asked for owner, asked in self.queue.items() if asked + base.HANDOVER_MS > now}
        self.deleted = {id: done for id, done in self.deleted.items() if done[0] + DELETES_REMEMBERED_MS > now}

    @property
    def is_empty(self) -> bool:
        return self.state is None and self.lease is None and not self.queue and not self.deleted

    def take(self, wanted: base.LeaseWanted, now: int) -> bool:
        """Give the lease, if it is free and nobody came before; else a place in the queue."""
        first = self.lease.owner if self.lease is not None else next(iter(self.queue), wanted.owner)
        if first == wanted.owner:
            self.hold(wanted.owner, wanted.ms, now)
            return True
        if wanted.queue:
            self.queue[wanted.owner] = now
        return False

    def hold(self, owner: str, ms: int, now: int) -> None:
        self.queue.pop(owner, None)
        self.lease = Lease(owner, self.lease.since if self.lease is not None else now, now + ms)

    def hand_over(self, now: int) -> None:
        """End the turn. The first waiter has a moment to come for the lease."""
        self.lease = None
        for owner in list(self.queue)[:1]:
            self.hold(owner, base.HANDOVER_MS, now)


class FileStore:
    """Keeps each key in a file of a folder, which is made if it is not there."""

    never_waits = False

    def __init__(self, folder: str | Path, clock: Clock | None = None) -> None:
        self._folder = Path(folder)
        self._clock = clock or SystemClock()

    @classmethod
    def from_settings(cls, settings: Settings) -> FileStore:
        """The store that `AK_SESSION__TYPE` asks for. Settings of its own come from variables of its own."""
        return cls(os.environ.get("ACME_SESSIONS_FOLDER", "sessions"))

    # ------------------------------------------------------------------------ turns

    async def open(
        self,
        key: Key,
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 - frozen
        known: base.Known | None = None,
        lease: base.LeaseWanted | None = None,
    ) -> base.Opened:
        def step(file: File, now: int) -> base.Opened:
            granted = lease is not None and file.take(lease, now)
            state = file.state if lease is None or granted else None
            if state is None:
                return base.Opened(now, ABSENT, None, granted, file.lease, len(file.queue))
            since = known.version.revision if known is not None and known.version in state.versions else 0
            same_record = known is not None and known.record_tag == state.life.record_tag
            return base.Opened(
                now=now,
                version=state.version,
                row=state.life.row(None if same_record else state.fields),
                granted=granted,
                lease=file.lease,
                waiters=len(file.queue),
                continues=since > 0,
                values={
                    namespace: values
                    for namespace, (changed, values) in state.values.items()
                    if wanted.values and changed > since and (values or since)
                },
                log_heads={Part(*names): log.head for *names, log in _flat(state.logs)},
                collections={Part(*names): changed for *names, (changed, _) in _flat(state.collections)},
                logs=[_read_log(state.log(asked.part), asked, since > 0) for asked in wanted.logs],
                entries=[state.entries(part).get(name) for part, name in wanted.entries],
                ranges=[_read_range(state.entries(asked.part), asked) for asked in wanted.ranges],
            )

        return await self._step(key, step, writes=lease is not None)

    async def commit(self, key: Key, commit: Commit) -> base.Committed:
        def step(file: File, now: int) -> base.Committed:
            state, previous = file.state, ABSENT if file.state is None else file.state.version
            for version in state.versions if state is not None else ():
                if version.commit_id == commit.id:
                    return base.Committed(version, ABSENT, None, b"", {}, repeated=True)
            _check(file, commit, previous, now)
            if state is None:
                state = file.state = State(Life.begun(commit, now))
            tag = state.life.record_tag
            _apply(state, commit, Version(previous.revision + 1, commit.id), now)
            if commit.hold_ms is None:
                file.hand_over(now)
            else:
                file.hold(commit.owner, commit.hold_ms, now)
            heads = {part: state.log(part).head for part in commit.logs}
            return base.Committed(state.version, previous, state.life.row(None), tag, heads)

        return await self._step(key, step)

    async def amend(self, key: Key, amend: base.Amend) -> base.Amended:
        def step(file: File, now: int) -> base.Amended:
            if file.state is None:
                raise SessionNotFoundError(f"{key.id!r} does not exist")
            changed = file.state.life.amend(amend, now, repr(key.id))
            if changed:
                _merge(file.state.fields, amend.fields)
                if file.lease is not None:
                    file.state.life.prolong(file.lease.until)
            return base.Amended(now, file.state.life.row(file.state.fields), changed, file.state.version.revision)

        return await self._step(key, step)

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> base.CommitStatus:
        def step(file: File, now: int) -> base.CommitStatus:
            versions = file.state.versions if file.state is not None else []
            if any(version.commit_id == commit_id for version in versions):
                return "stored"
            complete = since in versions or since.revision == (versions[0].revision - 1 if versions else 0)
            return "not_stored" if complete else "unknown"

        return await self._step(key, step, writes=False)

    # ------------------------------------------------------------------------ leases

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        def step(file: File, now: int) -> bool:
            if file.lease is None or file.lease.owner != owner:
                return False
            file.hold(owner, ms, now)
            if file.state is not None:
                file.state.life.prolong(now + ms)
            return True

        return await self._step(key, step)

    async def release(self, key: Key, owner: str) -> None:
        def step(file: File, now: int) -> None:
            file.queue.pop(owner, None)
            if file.lease is not None and file.lease.owner == owner:
                file.hand_over(now)

        await self._step(key, step)

    async def unlock(self, key: Key) -> Lease | None:
        def step(file: File, now: int) -> Lease | None:
            broken = file.lease
            if broken is not None:
                file.hand_over(now)
            return broken

        return await self._step(key, step)

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        def is_next(file: File, now: int) -> bool:
            return (file.lease.owner if file.lease is not None else next(iter(file.queue), owner)) == owner

        end = time.monotonic() + min(seconds, 1.0)  # who asks again in time keeps the place
        while time.monotonic() < end and not await self._step(key, is_next, writes=False):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)

    # ------------------------------------------------------------------------ the rest

    async def delete(self, key: Key, write_id: bytes) -> bool:
        def step(file: File, now: int) -> bool:
            if write_id.hex() not in file.deleted:
                file.deleted[write_id.hex()] = now, file.state is not None
                if file.state is not None:
                    file.state = None
                    file.hand_over(now)
            return file.deleted[write_id.hex()][1]

        return await self._step(key, step)

    async def find(
        self,
        tenant: str,
        kind: base.Kind,
        *,
        belongs_to: str | None = None,
        status: Status | None = None,
        order: base.Order = "activity",
        limit: int = 50,
        cursor: base.Cursor | None = None,
    ) -> base.Page:
        now, listed = await self._listed(tenant, kind, belongs_to, status)
        places = [(base.Cursor(_time(found, order), found.id), found) for found in listed]
        places = sorted((place for place in places if cursor is None or place[0] < cursor), reverse=True)
        found = [found for _, found in places[:limit]]
        return base.Page(now, found, places[limit - 1][0] if len(places) > limit else None)

    async def count(
        self, tenant: str, kind: base.Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        return len((await self._listed(tenant, kind, belongs_to, status))[1])

    async def run_out(self, tenant: str, kind: base.Kind, *, limit: int = 100) -> base.Page:
        now, ended = await self._listed(tenant, kind, None, "ended")
        ran_out = sorted((found.row.ends_at or 0, found.id, found) for found in ended if found.row.ended_at is None)
        return base.Page(now, [found for *_, found in ran_out[:limit]], None)

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> base.Keys:
        def read() -> base.Keys:
            with self._lock():
                paths = sorted(path for path in self._folder.glob("*.key") if path.name.encode() > (cursor or b""))
                now = self._clock.now_ms()
                keys = [file.key for path in paths[:limit] if (file := _load(path, now)) and file.state is not None]
            return base.Keys(keys, paths[limit - 1].name.encode() if len(paths) > limit else None)

        return await self._in_a_thread(read)

    async def detach(self) -> None:
        pass  # no file stays open between two steps

    async def aclose(self) -> None:
        pass

    # ------------------------------------------------------------------------ files

    async def _step(self, key: Key, step: Callable[[File, int], T], *, writes: bool = True) -> T:
        """Do a step on a key's file. What raises has changed nothing; a cancelled step is done, or not begun."""

        def do() -> T:
            name = blake2b("\0".join(map(str, map(len, key))).encode() + "".join(key).encode(), digest_size=20)
            path = self._folder / f"{name.hexdigest()}.key"
            with self._lock():
                now = self._clock.now_ms()
                file = _load(path, now) or File(key)
                result = step(file, now)
                if writes:
                    _save(path, file)
                return result

        return await self._in_a_thread(do)

    async def _listed(
        self, tenant: str, kind: base.Kind, belongs_to: str | None, status: Status | None
    ) -> tuple[int, list[base.Found]]:
        def read() -> tuple[int, list[base.Found]]:
            with self._lock():
                now = self._clock.now_ms()
                files = [_load(path, now) for path in self._folder.glob("*.key")]
            listed = [
                base.Found(file.key.id, file.state.life.row(file.state.fields), file.state.version.revision)
                for file in files
                if file is not None and file.state is not None and (file.key.tenant, file.key.kind) == (tenant, kind)
                if belongs_to in (None, file.state.life.belongs_to)
                if status in (None, file.state.life.stamps.status(now))
            ]
            return now, listed

        return await self._in_a_thread(read)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StoreUnavailableError(f"{self._folder} can't be used: {error.strerror}") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # which ends when the file is closed, also by the death of the process
            yield


def _load(path: Path, now: int) -> File | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if (stored := msgspec.msgpack.decode(data)["format"]) > base.FORMAT:
        raise FormatTooNewError(f"{path} has format {stored}; this version reads up to {base.FORMAT}")
    file = msgspec.msgpack.decode(data, type=File)
    file.tidy(now)
    return file


def _save(path: Path, file: File) -> None:
    """Replace the file in one step: whoever looks, also after a crash, sees the old one or the new one, whole."""
    if file.is_empty:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(".new")
    with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as written:
        written.write(msgspec.msgpack.encode(file))
        written.flush()
        os.fsync(written.fileno())
    fresh.replace(path)


# --------------------------------------------------------------------------------------------------- commits


def _check(file: File, commit: Commit, version: Version, now: int) -> None:
    """Raise what keeps a commit from being stored."""
    if file.state is None and commit.expected not in (None, ABSENT):
        raise SessionNotFoundError(f"{file.key.id!r} does not exist")
    if file.state is not None and not commit.maintenance:
        file.state.life.refuse_ended(now, repr(file.key.id))
    if commit.expected is not None and commit.expected != version:
        if version.revision - commit.expected.revision > base.COMMITS_REMEMBERED:
            raise CommitUnknownError(f"too many commits since on {file.key.id!r}", commit_id=commit.id.hex())
        raise SessionConflictError(f"{file.key.id!r} is at revision {version.revision}, not at the expected one")
    if file.lease is not None and file.lease.owner != commit.owner:
        raise SessionBusyError(f"{file.key.id!r} is held by {file.lease.owner} for {file.lease.until - now} ms more")


def _apply(state: State, commit: Commit, version: Version, now: int) -> None:
    state.versions = [*state.versions, version][-base.COMMITS_REMEMBERED :]
    state.life.commit(commit, now)
    _merge(state.fields, commit.fields)
    for (namespace, name), data in commit.values.items():
        values = state.values.get(namespace, (0, {}))[1]
        _merge(values, {name: data})
        state.values[namespace] = version.revision, values
    for (namespace, name), change in commit.logs.items():
        log = state.logs.setdefault(namespace, {}).setdefault(name, Log())
        del log.items[0 if change.clear else max(0, len(log.items) - change.pop) :]
        log.items += enumerate(change.append, log.issued + 1)
        log.issued += len(change.append)
    for part, changed in commit.collections.items():
        gone = tuple(changed.delete_prefixes)
        entries = {name: data for name, data in state.entries(part).items() if not name.startswith(gone)}
        _merge(entries, changed.entries)
        named = state.collections.setdefault(part.namespace, {})
        named.pop(part.name, None)
        if entries:
            named[part.name] = version.revision, entries


def _merge(kept: dict[str, bytes], changes: dict[str, bytes | None]) -> None:
    for name, data in changes.items():
        if data is None:
            kept.pop(name, None)
        else:
            kept[name] = data


# --------------------------------------------------------------------------------------------------- reads


def _time(found: base.Found, order: base.Order) -> int:
    return found.row.active_at if order == "activity" else found.row.started_at


def _read_log(log: Log, wanted: base.LogWanted, continues: bool) -> base.LogRead:
    if continues and 0 < wanted.count <= len(log.items) and log.items[wanted.count - 1][0] == wanted.last:
        return base.LogRead(log.head, [data for _, data in log.items[wanted.count :]], True)
    start = 0 if wanted.limit is None else max(0, len(log.items) - wanted.limit)
    return base.LogRead(log.head, [data for _, data in log.items[start:]], False)


def _read_range(entries: dict[str, bytes], wanted: base.EntryRange) -> list[tuple[str, bytes]]:
    names = sorted(name for name in entries if name.startswith(wanted.prefix))  # as code points, so as UTF-8 bytes
    names = [name for name in names if wanted.after is None or name > wanted.after]
    names = [name for name in names if wanted.before is None or name < wanted.before]
    return [(name, entries[name]) for name in (names[::-1] if wanted.reverse else names)[: wanted.limit]]


def _flat(nested: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    return ((namespace, name, held) for namespace, named in nested.items() for name, held in named.items())
