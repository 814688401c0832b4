"""Bringing everything that one store holds to another, whatever their backends are.

    report = await migrate(SQLiteStore("agent-sessions.db"), RedisStore.from_url("redis://localhost:6379"))

Sessions, activations, users, applications, agents, policies: every key of every tenant and kind is copied with all its
parts, each in one atomic commit, then read back and compared byte for byte. The source is only read. What makes it
possible to stop at any moment, and to run it again, is in the copies themselves: the id of the commit that made one
is computed from the state that it is a copy of. So the next run sees without reading either that a copy is there and
nothing has changed since; that its original has changed, and the copy has not (it is brought up to date); or that the
copy has (it is left alone).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct, field

from .background import portal, uncancelled
from .errors import (
    CommitUnknownError,
    SessionBusyError,
    SessionConflictError,
    SessionEndedError,
    SessionError,
    SessionExpiredError,
    StoreUnavailableError,
)
from .identifiers import DEFAULT_TENANT
from .stores.base import CollectionChange, Commit, Key, Kind, LeaseWanted, Opened, Part, Row, Store, Wanted
from .stores.whole import Whole, own_counters, read_whole
from .turns.commits import Traffic, store_commit, store_delete

PAGE_KEYS = 100
"""How many keys lie between two reports."""

AT_ONCE = 8
"""How many keys are copied at a time, so that so many are in memory, twice."""

MOST_IN_USE = 256
"""So many keys that turns are using are put off, before it is their turn to be waited for."""

MOST_PROBLEMS = 1_000
"""How many are described. All are counted."""

LEASE_MS = 30_000

Outcome = Literal["copied", "updated", "same", "gone", "differs", "in_use", "failed"]
"""What became of a key.

| | |
|---|---|
| copied | it was not there, and is now |
| updated | an older copy was there, or with `overwrite` something else; it is now as in the source |
| same | it was there already, the same |
| gone | it was deleted, or its time ran out, while this went on |
| differs | something else is there, and was left alone |
| in_use | a turn kept it for longer than was waited |
| failed | it could not be read, written or verified; the problem says why |
"""

_UNFINISHED: frozenset[Outcome] = frozenset(("differs", "in_use", "failed"))
_NOT_COPIED = frozenset((Key(DEFAULT_TENANT, "system", "rekey"),))  # how far a rekey of that very store is
_JOINED = frozenset((Key(DEFAULT_TENANT, "system", "tenants"),))  # a list that every process adds to
_OVERTAKEN = (SessionConflictError, SessionEndedError, SessionExpiredError)  # somebody has just made it there
_TRIES = 5
_HALF = 4
_LONGEST_NAP_S = 1.0


class Problem(Struct, frozen=True):
    """A key that is not in the target as it is in the source."""

    key: Key
    outcome: Outcome
    what: str


class Migration(Struct):
    """How far it has come, and, at its end, what was done."""

    dry_run: bool
    counts: dict[Kind, Counter[Outcome]] = field(default_factory=dict)
    """How many keys of each kind came to what. Some stores show a key more than once; then it is `same`."""
    bytes_copied: int = 0
    problems: list[Problem] = field(default_factory=list)
    """The first thousand of them."""

    @property
    def totals(self) -> Counter[Outcome]:
        """How many keys of all kinds came to what."""
        return sum(self.counts.values(), Counter())

    @property
    def is_complete(self) -> bool:
        """Whether the target now holds everything that was found in the source, as it was when it was copied."""
        return not any(self.totals[outcome] for outcome in _UNFINISHED)


Report: TypeAlias = Callable[[Migration], None]

_Result: TypeAlias = tuple[Outcome, str]
_Attempt: TypeAlias = Callable[[Key], Coroutine[None, None, _Result | None]]


async def migrate(
    source: Store,
    target: Store,
    *,
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    wait_s: float = 60.0,
    report: Report | None = None,
) -> Migration:
    """Copy everything in one store to another, except leases, and verify each copy.

    It may be stopped, or killed, at any moment: run it again, and it goes on. Run it again too when sessions have been
    written in the source meanwhile: copies that nobody has written to are brought up to date.

    Args:
        source: Where everything is. It is only read, and a session that a turn has is waited for, in its queue.
        target: Where everything is to be.
        overwrite: Replace also what differs from the source for another reason than that it is an older copy.
        verify: Read and compare also the copies that earlier runs made.
        dry_run: Only tell what would be done.
        wait_s: How long to wait for a key that a turn has.
        report: Called about every 100 keys, and at the end, with how far it has come.

    Returns:
        What was done.

    Raises:
        StoreUnavailableError, CommitUnknownError: One of the stores is away. What was copied stays.
    """
    run = _Run(source, target, overwrite=overwrite, verify=verify, dry_run=dry_run, wait_s=wait_s)
    return await run.run(report or (lambda _: None))


def migrate_sync(
    source: Store,
    target: Store,
    *,
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    wait_s: float = 60.0,
    report: Report | None = None,
) -> Migration:
    """See `migrate`. An interrupt (Ctrl-C) stops it. `report` is called in the background thread."""

    async def work() -> Migration:
        return await migrate(
            source, target, overwrite=overwrite, verify=verify, dry_run=dry_run, wait_s=wait_s, report=report
        )

    running = portal().start_task_soon(work)
    try:
        return running.result()
    finally:
        running.cancel()


class _Run:
    def __init__(
        self, source: Store, target: Store, *, overwrite: bool, verify: bool, dry_run: bool, wait_s: float
    ) -> None:
        self._source = source
        self._target = target
        self._overwrite = overwrite
        self._verify = verify
        self._wait_s = wait_s
        self._put_off: list[Key] = []
        self._progress = Migration(dry_run)

    async def run(self, report: Report) -> Migration:
        cursor: bytes | None = None
        while True:
            page = await self._source.scan(limit=PAGE_KEYS, cursor=cursor)
            await self._each(self._try, [key for key in page.keys if key not in _NOT_COPIED])
            cursor = page.next
            if cursor is None or len(self._put_off) > MOST_IN_USE:
                put_off, self._put_off = self._put_off, []
                await self._each(self._wait_for, put_off)
            report(self._progress)
            if cursor is None:
                return self._progress

    async def _each(self, attempt: _Attempt, keys: Sequence[Key]) -> None:
        """Attempt all of them, some at once; note what became of each, and put off what is in use."""
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            results = await asyncio.gather(*(self._result(attempt, key) for key in some), return_exceptions=True)
            for key, result in zip(some, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    self._put_off.append(key)
                else:
                    self._note(key, *result)

    async def _result(self, attempt: _Attempt, key: Key) -> _Result | None:
        try:
            return await attempt(key)
        except (StoreUnavailableError, CommitUnknownError):
            raise
        except SessionConflictError:
            return "in_use", "it is written all the time; run this again later"
        except SessionError as error:
            return "failed", str(error)

    def _note(self, key: Key, outcome: Outcome, what: str) -> None:
        self._progress.counts.setdefault(key.kind, Counter())[outcome] += 1
        if outcome in _UNFINISHED and len(self._progress.problems) < MOST_PROBLEMS:
            self._progress.problems.append(Problem(key, outcome, what))

    # ------------------------------------------------------------------------------------------------ one key

    async def _try(self, key: Key) -> _Result | None:
        """Copy a key; None if a turn has it."""
        seen = await self._source.open(key, wanted=Wanted(values=False))
        return await self._copy(key, seen) if seen.lease is None else None

    async def _wait_for(self, key: Key) -> _Result:
        """Copy a key in its turn, so that what the turn before has written comes along."""
        owner, end = _new_owner(), time.monotonic() + self._wait_s
        lease = LeaseWanted(owner, LEASE_MS, queue=True)
        try:
            while True:
                seen = await self._source.open(key, wanted=Wanted(values=False), lease=lease)
                if seen.granted:
                    return await self._copy(key, seen)
                left = end - time.monotonic()
                if left <= 0:
                    return "in_use", "a turn has it; run this again later"
                await self._source.wait(key, owner, min(left, _LONGEST_NAP_S))
        finally:
            await uncancelled(self._source.release(key, owner))

    async def _copy(self, key: Key, seen: Opened) -> _Result:
        for _ in range(_TRIES):
            there = await self._target.open(key, wanted=Wanted(values=False))
            if not self._verify and _is_copy(there, key, seen):
                return "same", ""
            whole = await read_whole(self._source, key, seen)
            if whole is None:
                return "gone", ""
            whole.content.refuse_unreadable("it")
            held = await read_whole(self._target, key, there)
            if held is not None and key in _JOINED:
                return await self._join(key, whole, held)
            if held is not None:
                if held.content == whole.content:
                    return "same", ""
                is_older_copy = _is_untouched(there) and held.row.started_at == whole.row.started_at
                if not is_older_copy and not self._overwrite:
                    return "differs", "something else has this id in the target"
            if self._progress.dry_run:
                return _done(there), ""
            try:
                return await self._put(key, whole, there)
            except SessionBusyError:
                return "in_use", "a turn has it in the target; run this again later"
            except _OVERTAKEN:
                seen = await self._source.open(key, wanted=Wanted(values=False))
        return "in_use", "it is written in the target all the time; run this again later"

    async def _join(self, key: Key, whole: Whole, held: Whole) -> _Result:
        """Add the entries that the target does not have."""
        missing: dict[Part, CollectionChange] = {}
        for part, entries in whole.content.collections.items():
            there = held.content.collections.get(part, {})
            if new := {name: data for name, data in entries.items() if name not in there}:
                missing[part] = CollectionChange(entries=dict(new))
        if not missing:
            return "same", ""
        if not self._progress.dry_run:
            commit = Commit(id=secrets.token_bytes(8), owner=_new_owner(), expected=None, collections=missing)
            await store_commit(self._target, key, commit, LEASE_MS, Traffic())
        return "updated", ""

    async def _put(self, key: Key, whole: Whole, there: Opened) -> _Result:
        """Write a copy, and read it back."""
        lifetime = whole.row.lifetime
        commits_before = whole.commits if key.kind == "session" else 0
        commit = whole.content.commit(lifetime, commits_before=commits_before, id=_commit_id(key, whole))

        async def write() -> None:
            if there.row is not None:
                await self._clear(key, there)
            await store_commit(self._target, key, commit, LEASE_MS, Traffic())

        await uncancelled(write())
        back = await read_whole(self._target, key)
        if back is None:
            gone_at = whole.content.course.stamps(lifetime).gone_at
            now = (await self._target.open(key, wanted=Wanted(values=False))).now
            is_over = gone_at is not None and gone_at <= now
            return ("gone", "") if is_over else ("failed", "it was written, and is not there")
        if back.content != whole.content or back.row.lifetime != lifetime:
            return "failed", "it was written, and what is read back is not the same"
        self._progress.bytes_copied += whole.content.size()
        return _done(there), ""

    async def _clear(self, key: Key, there: Opened) -> None:
        """Delete what is in the target, unless it is being written, or was since it was seen.

        If this ends before the copy is written, the original is still in the source, and the next run copies it.
        """
        owner = _new_owner()
        now = await self._target.open(key, wanted=Wanted(values=False), lease=LeaseWanted(owner, LEASE_MS, queue=False))
        if not now.granted:
            raise SessionBusyError(f"{key.kind} {key.id!r} has a turn in the target")
        try:
            if now.row is not None and _state(now) != _state(there):
                raise SessionConflictError(f"{key.kind} {key.id!r} has changed in the target")
            await store_delete(self._target, key, LEASE_MS)
        finally:
            await self._target.release(key, owner)


def _done(there: Opened) -> Outcome:
    return "copied" if there.row is None else "updated"


def _commit_id(key: Key, original: Opened | Whole) -> bytes:
    """The id of the commit that makes a copy of a key in this state.

    Its first half tells whether the record of the copy is as it was brought; the second, what it is a copy of.
    """
    assert original.row is not None
    return _hashed(*_events(original.row)) + _hashed(key, *_state(original))


def _is_copy(copy: Opened, key: Key, original: Opened) -> bool:
    """Whether a key is a copy of this very state, and nothing else since."""
    return original.row is not None and _is_untouched(copy) and copy.version.commit_id == _commit_id(key, original)


def _is_untouched(copy: Opened) -> bool:
    """Whether a key is a copy that was made here, and that nobody has written to since."""
    revision, commit_id = copy.version
    return (
        copy.row is not None
        and revision == 1
        and copy.row.record_tag == commit_id
        and commit_id[:_HALF] == _hashed(*_events(copy.row))
    )


def _state(key: Opened | Whole) -> tuple[object, ...]:
    """What is another one after every change."""
    assert key.row is not None
    return key.version, key.row.record_tag, *_events(key.row)


def _events(row: Row) -> tuple[object, ...]:
    """What changes in a record without its tag. None of it is a secret, as its fields may be."""
    return row.course, row.belongs_to, sorted(row.own.items()), sorted(own_counters(row).items())


def _hashed(*parts: object) -> bytes:
    return blake2b(msgspec.msgpack.encode(parts), digest_size=_HALF, person=b"migration").digest()


def _new_owner() -> str:
    return f"{socket.gethostname()[:24]}/{os.getpid()}/migrate-{secrets.token_hex(4)}"
