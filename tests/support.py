"""Stores that misbehave in one way each. They stand before a real one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, TypeVar, cast

from agent_sessions import SessionManager
from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.base import Commit, Committed, Key, Opened, Store

T = TypeVar("T")


def before(manager: SessionManager, kind: type[T]) -> T:
    """What stands before a manager's store."""
    store: object = manager.store
    assert isinstance(store, kind)
    return store


def alone() -> Context:
    """A context for a task in which no turn is open: it does not join."""
    return Context()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when it is so."""
    while not await condition():  # noqa: ASYNC110 - it is asked of a store
        await asyncio.sleep(0.001)


async def waiters(manager: SessionManager, session_id: str, count: int) -> None:
    """Return when so many turns wait for a session."""

    async def are_there() -> bool:
        lock = await manager.lock(session_id)
        return lock is not None and lock.waiters == count

    await until(are_there)


class Before:
    """Stands before a store and passes everything on, each operation with a chance for other tasks in between."""

    never_waits = False

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    @property
    def store(self) -> Store:
        """This, as a manager takes it."""
        return cast(Store, self)

    async def open(self, key: Key, **asked: Any) -> Opened:
        await asyncio.sleep(0)
        opened = await self.inner.open(key, **asked)
        await asyncio.sleep(0)
        return opened

    async def commit(self, key: Key, commit: Commit) -> Committed:
        await asyncio.sleep(0)
        committed = await self.inner.commit(key, commit)
        await asyncio.sleep(0)
        return committed

    async def release(self, key: Key, owner: str) -> None:
        await asyncio.sleep(0)
        await self.inner.release(key, owner)

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        return await self.inner.renew(key, owner, ms)

    async def delete(self, key: Key, write_id: bytes) -> bool:
        await asyncio.sleep(0)
        return await self.inner.delete(key, write_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Counting(Before):
    """Counts the operations on sessions."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.opens: list[dict[str, Any]] = []
        self.answers: list[Opened] = []

    async def open(self, key: Key, **asked: Any) -> Opened:
        answer = await super().open(key, **asked)
        if key.kind == "session":
            self.calls["open"] += 1
            self.opens.append(asked)
            self.answers.append(answer)
        return answer

    async def commit(self, key: Key, commit: Commit) -> Committed:
        if key.kind == "session":
            self.calls["commit"] += 1
        return await super().commit(key, commit)

    async def delete(self, key: Key, write_id: bytes) -> bool:
        if key.kind == "session":
            self.calls["delete"] += 1
        return await super().delete(key, write_id)


class LosingReplies(Counting):
    """Carries commits and deletes out, and loses so many of the replies."""

    def __init__(self, inner: Store, replies: int) -> None:
        super().__init__(inner)
        self.left = replies

    async def commit(self, key: Key, commit: Commit) -> Committed:
        committed = await super().commit(key, commit)
        self._lose(key)
        return committed

    async def delete(self, key: Key, write_id: bytes) -> bool:
        existed = await super().delete(key, write_id)
        self._lose(key)
        return existed

    def _lose(self, key: Key) -> None:
        if key.kind == "session" and self.left:
            self.left -= 1
            raise StoreUnavailableError("the reply was lost")


class Deaf(Before):
    """Takes commits on sessions, while it is deaf, and neither carries them out nor answers; or can't be reached."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.is_deaf = self.is_unreachable = False

    async def commit(self, key: Key, commit: Commit) -> Committed:
        if key.kind == "session" and (self.is_deaf or self.is_unreachable):
            raise StoreUnavailableError("no answer", maybe_done=not self.is_unreachable)
        return await super().commit(key, commit)


class Failing(Before):
    """Raises what no store should, from the operations named."""

    def __init__(self, inner: Store, *operations: str, kind: str | None = None) -> None:
        super().__init__(inner)
        self.operations = set(operations)
        self.kind = kind
        self.failed = asyncio.Event()

    async def commit(self, key: Key, commit: Commit) -> Committed:
        self._fail("commit", key)
        return await super().commit(key, commit)

    async def release(self, key: Key, owner: str) -> None:
        self._fail("release", key)
        await super().release(key, owner)

    def _fail(self, operation: str, key: Key) -> None:
        if operation in self.operations and self.kind in (None, key.kind):
            raise OSError("a broken store")


class Barrier:
    """A point that operations come to, and leave when the test lets them."""

    def __init__(self) -> None:
        self.reached, self._let_go = asyncio.Event(), asyncio.Event()

    async def stop(self) -> None:
        self.reached.set()
        await self._let_go.wait()

    def lift(self) -> None:
        self._let_go.set()


class Stopping(Before):
    """Stops the next operation on a session, of a name, before or after it is carried out."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._barriers: dict[tuple[str, str], Barrier] = {}

    def stop(self, operation: str, *, when: str = "before") -> Barrier:
        """Where the next such operation will stop."""
        barrier = self._barriers[operation, when] = Barrier()
        return barrier

    async def open(self, key: Key, **asked: Any) -> Opened:
        async with self._around("open", key):
            return await super().open(key, **asked)

    async def commit(self, key: Key, commit: Commit) -> Committed:
        async with self._around("commit", key):
            return await super().commit(key, commit)

    async def release(self, key: Key, owner: str) -> None:
        async with self._around("release", key):
            await super().release(key, owner)

    @asynccontextmanager
    async def _around(self, operation: str, key: Key) -> AsyncIterator[None]:
        await self._stop(operation, "before", key)
        yield
        await self._stop(operation, "after", key)

    async def _stop(self, operation: str, when: str, key: Key) -> None:
        barrier = self._barriers.pop((operation, when), None) if key.kind == "session" else None
        if barrier is not None:
            await barrier.stop()
