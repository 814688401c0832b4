"""The store in one SQLite file, for all processes of one machine.

The tables are in `schema.py`; what an operation does to them in `reading.py`, `writing.py` and `leases.py`; the
thread that does it in `worker.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from weakref import WeakSet, finalize

from agent_sessions.clock import Clock, SystemClock
from agent_sessions.stores.base import (
    Amend,
    Amended,
    Commit,
    CommitStatus,
    Committed,
    Cursor,
    Key,
    Keys,
    Kind,
    Known,
    Lease,
    LeaseWanted,
    Opened,
    Order,
    Page,
    Version,
    Wanted,
)
from agent_sessions.stores.lifetime import Status
from agent_sessions.stores.sqlite import failures, leases, reading, writing
from agent_sessions.stores.sqlite.reading import Scope
from agent_sessions.stores.sqlite.transaction import Transaction, Waiter
from agent_sessions.stores.sqlite.worker import Job, Mode, Worker, join

if TYPE_CHECKING:
    from agent_sessions.settings import Settings

T = TypeVar("T")

WAIT_S = 5.0
"""For how long another process may keep the file locked before an operation fails."""

_ANSWER_S = 30.0
"""For how long the disk may take beyond that."""

_AT_EXIT_S = 2.0


class SQLiteStore:
    """Keeps sessions in an SQLite file.

    It is opened at its first use, by a thread of this store, and closed by `aclose`, or when the last event loop that
    has used it detaches; the next use opens it again.

    Args:
        path: The file, on a local disk. It is made if it is not there; its folder is not.
        synchronous: `full`: what is committed outlives a crash of the machine. `normal`: it outlives a crash of the
            process; one of the machine may take the last commits back (whole ones, the latest first).
        clock: For tests; the host's if None.
        wait_s: For how long another process may keep the file locked before an operation fails.
    """

    never_waits = False

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: Literal["full", "normal"] = "full",
        clock: Clock | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._path = os.path.abspath(path)
        self._full = synchronous == "full"
        self._clock: Clock = clock or SystemClock()
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._abandoned: finalize[..., Any] | None = None
        self._loops: set[asyncio.AbstractEventLoop] = set()
        _stores.add(self)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The store that `AK_SESSION__SQLITE__*` describes."""
        return cls(settings.sqlite.path, synchronous=settings.sqlite.synchronous)

    # ------------------------------------------------------------------------------------------------- turns

    async def open(
        self,
        key: Key,
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 - frozen
        known: Known | None = None,
        lease: LeaseWanted | None = None,
    ) -> Opened:
        """See `Store.open`."""
        mode = Mode.READS if lease is None else Mode.WRITES
        return await self._do(mode, lambda tx: reading.open_key(tx, key, wanted, known, lease))

    async def commit(self, key: Key, commit: Commit) -> Committed:
        """See `Store.commit`."""
        return await self._do(Mode.STORES, lambda tx: writing.commit(tx, key, commit))

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """See `Store.amend`."""
        return await self._do(Mode.STORES, lambda tx: writing.amend(tx, key, amend))

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> CommitStatus:
        """See `Store.commit_status`."""
        return await self._do(Mode.READS, lambda tx: reading.commit_status(tx, key, commit_id, since))

    # ------------------------------------------------------------------------------------------------- leases

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        """See `Store.renew`."""
        return await self._do(Mode.WRITES, lambda tx: leases.renew(tx, key, owner, ms))

    async def release(self, key: Key, owner: str) -> None:
        """See `Store.release`."""
        await self._do(Mode.WRITES, lambda tx: leases.release(tx, key, owner))

    async def unlock(self, key: Key) -> Lease | None:
        """See `Store.unlock`."""
        return await self._do(Mode.WRITES, lambda tx: leases.unlock(tx, key))

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        """See `Store.wait`. Returns after a second at the latest: asking again keeps the place in the queue."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        waiter = Waiter(key, owner, loop, loop.create_future())
        try:
            pause = await self._do(Mode.READS, lambda tx: leases.wait(tx, waiter))
            await asyncio.wait([waiter.woken], timeout=max(0.0, min(pause, end - loop.time())))
        finally:
            waiter.woken.cancel()

    # ------------------------------------------------------------------------------------------------- lifecycle

    async def delete(self, key: Key, write_id: bytes) -> bool:
        """See `Store.delete`."""
        return await self._do(Mode.STORES, lambda tx: writing.delete(tx, key, write_id))

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
        scope = Scope(tenant, kind, belongs_to, status)
        return await self._do(Mode.READS, lambda tx: reading.find(tx, scope, order, limit, cursor))

    async def count(
        self, tenant: str, kind: Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        """See `Store.count`."""
        scope = Scope(tenant, kind, belongs_to, status)
        return await self._do(Mode.READS, lambda tx: reading.count(tx, scope))

    async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
        """See `Store.run_out`."""
        return await self._do(Mode.READS, lambda tx: reading.run_out(tx, tenant, kind, limit))

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        """See `Store.scan`."""
        return await self._do(Mode.READS, lambda tx: reading.scan(tx, limit, cursor))

    # ------------------------------------------------------------------------------------------------- closing

    async def detach(self) -> None:
        """See `Store.detach`. The file is closed if no other event loop uses it."""
        with self._lock:
            self._loops.discard(asyncio.get_running_loop())
            in_use = any(not loop.is_closed() for loop in self._loops)
        if not in_use:
            await self.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`. What was asked for before comes to its end."""
        worker = self._let_go()
        if worker is not None:
            await worker.end(self._wait_s + _ANSWER_S)

    def _let_go(self) -> Worker | None:
        """The thread, whose file is to be closed: the next use starts another one."""
        with self._lock:
            worker, self._worker = self._worker, None
            self._loops.clear()
            if self._abandoned is not None:
                self._abandoned.detach()
        return worker

    # ------------------------------------------------------------------------------------------------- the thread

    async def _do(self, mode: Mode, work: Callable[[Transaction], T]) -> T:
        """Have some work done by the thread. If this is cancelled, it comes to its end, or never begins."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        job = Job(work, mode, time.monotonic() + self._wait_s, loop, result)
        with self._lock:
            if self._worker is None:
                self._worker = Worker(self._path, self._clock, full=self._full, wait_s=self._wait_s)
                self._abandoned = finalize(self, self._worker.stop)
                self._abandoned.atexit = False
            if loop not in self._loops:
                self._loops = {loop, *(other for other in self._loops if not other.is_closed())}
            self._worker.submit(job)
        answer_s = self._wait_s + _ANSWER_S
        timer = loop.call_later(answer_s, partial(_give_up, result, self._path, answer_s))
        try:
            return await result
        finally:
            timer.cancel()


def _give_up(result: asyncio.Future[T], path: str, seconds: float) -> None:
    if not result.done():
        result.set_exception(failures.silent(path, seconds))


# --------------------------------------------------------------------------------------------------- fork, exit

_stores: WeakSet[SQLiteStore] = WeakSet()


def _after_fork() -> None:
    """Start without a thread: the parent's runs there."""
    for store in list(_stores):
        store._lock = threading.Lock()
        store._worker = None
        store._loops = set()


def _at_exit() -> None:
    """Close what nobody has closed. What runs after this and uses a store opens its file again."""
    for store in list(_stores):
        if (worker := store._let_go()) is not None:
            worker.stop()
    join(_AT_EXIT_S)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
