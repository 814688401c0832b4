"""What the chapters of the suite share: the fixtures, and a client that believes a store word by word."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import (
    ABSENT,
    Commit,
    Committed,
    EntryRange,
    Key,
    Known,
    LeaseWanted,
    LogChange,
    LogHead,
    LogWanted,
    Opened,
    Part,
    Store,
    Version,
    Wanted,
)
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.testing.clock import FakeClock

LEASE_MS = 30_000
PATIENCE_S = 30.0
LOG = Part("openai", "items")
CHECKPOINTS = Part("langgraph", "checkpoints")


class Harness:
    """The fixtures of each chapter. All of a test happens in a tenant of its own."""

    def make_store(self, clock: Clock) -> Store:
        """Make a store on the backend under test.

        A test calls this more than once: its stores stand for processes that share one backend, or, where stores share
        nothing, are the same object. They go by the given clock.
        """
        raise NotImplementedError("a subclass of StoreConformance says how its stores are made")

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The time that the stores of a test go by."""
        return FakeClock()

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[Store]:
        """The store under test."""
        store = self.make_store(clock)
        yield store
        await store.aclose()

    @pytest.fixture
    async def other(self, clock: FakeClock) -> AsyncIterator[Store]:
        """The store of another process."""
        store = self.make_store(clock)
        yield store
        await store.aclose()

    @pytest.fixture
    def tenant(self) -> str:
        """A tenant that no other test uses."""
        return f"tenant-{os.urandom(6).hex()}"

    @pytest.fixture
    def key(self, tenant: str) -> Key:
        """A session that does not exist yet."""
        return Key(tenant, "session", "s-1")

    @pytest.fixture
    async def made(self, store: Store, key: Key) -> Key:
        """The same, which exists."""
        await store.commit(key, change(values={Part("default", "a"): b"1"}))
        return key


def new_id() -> bytes:
    """The id of a commit or of another write."""
    return os.urandom(8)


def change(
    *,
    expected: Version | None = None,
    owner: str = "us",
    id: bytes | None = None,
    ttl_ms: int | None = None,
    lifetime: Lifetime = Lifetime(),  # noqa: B008 - a tuple
    **changes: Any,
) -> Commit:
    """A commit; a blind one unless told otherwise."""
    lifetime = lifetime if ttl_ms is None else lifetime._replace(ttl_ms=ttl_ms)
    return Commit(id=id or new_id(), owner=owner, expected=expected, lifetime=lifetime, **changes)


def append(*items: bytes, clear: bool = False, pop: int = 0) -> dict[Part, LogChange]:
    """What happens to `LOG`."""
    return {LOG: LogChange(clear=clear, pop=pop, append=list(items))}


def lease(owner: str, *, ms: int = LEASE_MS, queue: bool = False) -> LeaseWanted:
    """A lease to take."""
    return LeaseWanted(owner, ms, queue)


async def take(store: Store, key: Key, owner: str, *, ms: int = LEASE_MS, queue: bool = False) -> bool:
    """Try to take a lease."""
    return (await store.open(key, lease=lease(owner, ms=ms, queue=queue))).granted


async def start_turn(store: Store, key: Key, owner: str, *, wanted: Wanted = Wanted()) -> Opened:  # noqa: B008 - frozen
    """Take the lease, and wait for it as long as it takes others to do their work."""
    end = time.monotonic() + PATIENCE_S
    while True:
        opened = await store.open(key, wanted=wanted, lease=lease(owner, queue=True))
        if opened.granted:
            return opened
        assert time.monotonic() < end, "the lease was never free"
        await store.wait(key, owner, 1.0)


async def commit_many(store: Store, key: Key, number: int) -> Committed:
    """Commit small changes one after the other, and return the last."""
    for turn in range(number):
        committed = await store.commit(key, change(values={Part("count", "turns"): b"%d" % turn}))
    return committed


async def read_log(store: Store, key: Key, part: Part = LOG, *, limit: int | None = None) -> list[bytes]:
    """The items of a log."""
    opened = await store.open(key, wanted=Wanted(values=False, logs=[LogWanted(part, limit)]))
    return opened.logs[0].items if opened.row is not None else []


async def read_values(store: Store, key: Key) -> dict[Part, bytes]:
    """All values."""
    opened = await store.open(key)
    return {Part(namespace, name): data for namespace, named in opened.values.items() for name, data in named.items()}


async def read_range(store: Store, key: Key, part: Part = CHECKPOINTS, **limits: Any) -> list[tuple[str, bytes]]:
    """Entries of a collection."""
    opened = await store.open(key, wanted=Wanted(values=False, ranges=[EntryRange(part, **limits)]))
    return opened.ranges[0] if opened.row is not None else []


async def version_of(store: Store, key: Key) -> Version:
    """The version of a key."""
    return (await store.open(key, wanted=Wanted(values=False))).version


class Client:
    """A cache that knows nothing but what the store tells it, and asks only for what is new."""

    def __init__(self, key: Key, *, logs: Iterable[Part] = (LOG,), limit: int | None = None) -> None:
        self.key = key
        self.limit = limit
        self.forget()
        self._parts = list(logs)

    def forget(self) -> None:
        """Start with nothing."""
        self.version = ABSENT
        self.known: Known | None = None
        self.fields: dict[str, bytes] = {}
        self.values: dict[str, dict[str, bytes]] = {}
        self.heads: dict[Part, LogHead] = {}
        self.logs: dict[Part, list[bytes]] = {}

    async def refresh(self, store: Store) -> Opened:
        """Bring everything up to date, and return the answer that did it."""
        wanted = [LogWanted(part, self.limit, *self.heads.get(part, (0, 0))) for part in self._parts]
        opened = await store.open(self.key, wanted=Wanted(logs=wanted), known=self.known)
        if opened.row is None:
            self.forget()
            return opened
        if opened.row.fields is not None:
            self.fields = opened.row.fields
        if not opened.continues:
            self.values = {}
        self.values.update(opened.values)
        self.values = {namespace: named for namespace, named in self.values.items() if named}
        for part, read in zip(self._parts, opened.logs, strict=True):
            kept = self.logs.get(part, []) if read.continues else []
            self.logs[part] = [*kept, *read.items]
            self.heads[part] = read.head
        self.version = opened.version
        self.known = Known(opened.version, opened.row.record_tag)
        return opened

    async def check(self, store: Store) -> Opened:
        """Refresh, and compare the result with what a client that knows nothing gets."""
        opened = await self.refresh(store)
        fresh = Client(self.key, logs=self._parts, limit=self.limit)
        await fresh.refresh(store)
        assert self.version == fresh.version
        assert self.fields == fresh.fields
        assert self.values == fresh.values
        assert self.heads == fresh.heads
        for part, items in fresh.logs.items():
            assert self.logs[part][-len(items) or len(self.logs[part]) :] == items
            assert self.limit is not None or self.logs[part] == items
        return opened


def numbered(start: int, stop: int) -> Sequence[bytes]:
    """Items that tell their place."""
    return [b"item %d" % number for number in range(start, stop)]
