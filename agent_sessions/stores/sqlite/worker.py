"""The one thread that talks to SQLite. An operation is one job for it: one hop there, and one back.

What has gathered while a transaction was written goes into the next one together, so that many turns at once share
one write to the disk. A job that changes nothing durable (a lease, a place in the queue) does not wait for the disk.

The thread waits for no lock. If another process is writing, it serves readers meanwhile, and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakSet

from agent_sessions.clock import Clock
from agent_sessions.errors import SessionError
from agent_sessions.stores.sqlite import failures, leases, schema, sweeping
from agent_sessions.stores.sqlite.connection import connect, identity
from agent_sessions.stores.sqlite.transaction import Transaction, Waiter

logger = logging.getLogger("agent_sessions")

POLL_S = 0.004
"""How often it looks whether another process has given a lease to somebody who waits in this one."""

_TRY_AGAIN_S = (0.0003, 0.003)
"""Between which pauses a lock is tried again; at random, so that processes don't march in step."""

_random = random.Random()  # the thread's own: the application may go by the state of the shared one

_AT_ONCE = 128
"""The most jobs that share a transaction."""


class Mode(IntEnum):
    """What a job does to the file."""

    READS = 0
    WRITES = 1
    """It changes what a crash of the machine may take back: leases, places in the queue."""
    STORES = 2
    """It is done when it is on the disk."""


class Job(NamedTuple):
    """Some work on the file, and who awaits its result."""

    work: Callable[[Transaction], Any]
    mode: Mode
    give_up_at: float
    """On the monotonic clock: so long a lock may be in the way."""
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]


class Worker:
    """A thread with a connection of its own. It ends when it is told to stop, with what was submitted before done.

    Args:
        path: The file.
        clock: What the store's time is.
        full: Whether what is stored has to outlive a crash of the machine.
        wait_s: For how long a lock may be in the way.
    """

    def __init__(self, path: str, clock: Clock, *, full: bool, wait_s: float) -> None:
        self._path = path
        self._clock = clock
        self._full = full
        self._wait_s = wait_s
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._blocked: list[Job] = []
        self._waiting: list[Waiter] = []
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._syncs: bool | None = None
        self._data_version = -1
        self._poll_at = self._sweep_at = 0.0
        self._buried = False
        self._stopping = False
        self._ended: Callable[[], None] | None = None
        self.gate = threading.Lock()
        """Held while the file is in use. Who holds it may fork."""
        self.thread = threading.Thread(target=self._run, name="agent-sessions-sqlite", daemon=True)
        with _registering:
            _workers.add(self)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Have a job done. None must come after `stop`."""
        self._inbox.put(job)

    def stop(self) -> None:
        """Do what was submitted, close the file, and end."""
        self._inbox.put(None)

    async def end(self, seconds: float) -> None:
        """Stop, and wait at most so long for it. It needs no other thread, which none can have when Python ends."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._ended = partial(_on, loop, _resolve, ended, None, None)
        self.stop()
        await asyncio.wait([ended], timeout=seconds)
        if ended.done():
            self.thread.join()

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._stopping or self._blocked:
            arrived = self._take()
            with self.gate:
                self._serve(arrived)
        with self.gate:
            self._finish_sweeping()
            self.disconnect()
        with _registering:
            _workers.discard(self)
        if self._ended is not None:
            self._ended()

    def _take(self) -> list[Job]:
        """The jobs that have arrived; waits for one until there is something else to do."""
        now = time.monotonic()
        if self._blocked:
            pause: float | None = _random.uniform(*_TRY_AGAIN_S)
        elif self._waiting:
            pause = max(0.0, self._poll_at - now)
        elif self._connection is not None:
            pause = max(0.0, self._sweep_at - now)
        else:
            pause = None
        jobs: list[Job] = []
        with contextlib.suppress(Empty):
            job = self._inbox.get(timeout=pause)
            while True:
                if job is None:
                    self._stopping = True
                else:
                    jobs.append(job)
                job = self._inbox.get_nowait()
        return jobs

    def _serve(self, arrived: list[Job]) -> None:
        jobs = [job for job in (*self._blocked, *arrived) if not job.result.cancelled()]
        self._blocked = []
        for job in jobs:
            if job.mode is Mode.READS:
                self._do([job])
        writers = [job for job in jobs if job.mode is not Mode.READS]
        for start in range(0, len(writers), _AT_ONCE):
            self._do(writers[start : start + _AT_ONCE])
        now = time.monotonic()
        if self._waiting and now >= self._poll_at:
            self._look_for_the_waiting()
            self._poll_at = now + POLL_S
        if self._connection is not None and now >= self._sweep_at and not self._blocked:
            self._buried = more = self._sweep()
            self._sweep_at = now + (sweeping.SOON_S if more else _random.uniform(0.5, 1.5) * sweeping.EVERY_S)

    # ------------------------------------------------------------------------------------------------ jobs

    def _do(self, jobs: list[Job]) -> None:
        """Do jobs in one transaction. If one fails in the middle, each is done alone."""
        try:
            results, tx = self._transact([job.work for job in jobs], max(job.mode for job in jobs))
        except Exception as error:
            self._roll_back(error)
            if isinstance(error, sqlite3.Error) and failures.is_locked(error):
                self._try_again(jobs)
            elif len(jobs) > 1:
                for job in jobs:
                    self._do([job])
            else:
                _settle(jobs[0], None, self._translated(error))
            return
        for job, result in zip(jobs, results, strict=True):
            refused = isinstance(result, SessionError)
            _settle(job, None if refused else result, result if refused else None)
        if tx.buried:
            self._buried, self._sweep_at = True, min(self._sweep_at, time.monotonic() + sweeping.SOON_S)
        self._waiting += tx.waiting
        if tx.handed_over and self._waiting:
            self._wake(lambda waiter: waiter.owner in tx.handed_over)

    def _transact(self, works: list[Callable[[Transaction], Any]], mode: Mode) -> tuple[list[Any], Transaction]:
        """Do all works at one moment. One that refuses has changed nothing, or all are taken back."""
        connection = self._connected()
        syncs = self._full and mode is Mode.STORES
        if syncs != self._syncs:
            connection.executescript(f"PRAGMA synchronous = {'FULL' if syncs else 'NORMAL'}")
            self._syncs = syncs
        connection.execute("BEGIN" if mode is Mode.READS else "BEGIN IMMEDIATE")
        schema.check_version(connection, self._path)
        tx, results = Transaction(connection, self._clock.now_ms()), []
        for work in works:
            changes = connection.total_changes
            try:
                results.append(work(tx))
            except SessionError as refused:
                if connection.total_changes != changes:
                    raise
                results.append(refused)
        connection.execute("COMMIT")
        return results, tx

    def _connected(self) -> sqlite3.Connection:
        """The connection to the file that is at the path now."""
        if self._connection is not None and identity(self._path) != self._file:
            self.disconnect()
        if self._connection is None:
            self._connection, self._file = connect(self._path)
            self._syncs, self._data_version = None, -1
            self._sweep_at = time.monotonic() + sweeping.SOON_S
        return self._connection

    def _roll_back(self, error: Exception) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.disconnect()
        if isinstance(error, sqlite3.Error) and not failures.is_harmless(error):
            self.disconnect()  # the next job looks at the file anew

    def disconnect(self) -> None:
        """Close the file. Whoever is the last brings all from the -wal file into it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _try_again(self, jobs: list[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            if now < job.give_up_at:
                self._blocked.append(job)
            else:
                _settle(job, None, failures.locked(self._path, self._wait_s))

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.DatabaseError | OSError) and not isinstance(error, sqlite3.ProgrammingError):
            translated = failures.unavailable(self._path, error)
            translated.__cause__ = error
            return translated
        return error

    # ------------------------------------------------------------------------------------------------ beside jobs

    def _look_for_the_waiting(self) -> None:
        """Wake those in this process whose turn it is, if anything was changed by another one."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.woken.done()]
        if not self._waiting:
            return
        try:
            (version,) = self._connected().execute("PRAGMA data_version").fetchone()
            if version == self._data_version:
                return
            next_ones: set[Waiter] = set()

            def look(tx: Transaction) -> None:
                next_ones.update(waiter for waiter in self._waiting if leases.is_next(tx, waiter))

            self._transact([look], Mode.READS)
            self._data_version = version
            self._wake(next_ones.__contains__)
        except Exception as error:
            self._roll_back(error)  # they ask again within a second, and are told

    def _wake(self, who: Callable[[Waiter], bool]) -> None:
        for waiter in filter(who, self._waiting):
            _on(waiter.loop, _resolve, waiter.woken, None, None)
        self._waiting = [waiter for waiter in self._waiting if not who(waiter)]

    def _finish_sweeping(self) -> None:
        """What was deleted is to be gone from the file when it is closed."""
        end = time.monotonic() + sweeping.AT_THE_END_S
        while self._buried and self._connection is not None and time.monotonic() < end:
            self._buried = self._sweep()

    def _sweep(self) -> bool:
        """Remove a little of what is past its time. True: there is more."""
        try:
            (more,), _ = self._transact([sweeping.sweep], Mode.WRITES)
            return sweeping.shrink(self._connected()) or bool(more)
        except Exception as error:
            self._roll_back(error)
            if isinstance(error, sqlite3.Error) and failures.is_locked(error):
                return True
            logger.warning("%s could not be swept (%s); trying again in a minute", self._path, type(error).__name__)
            return False


def _settle(job: Job, result: Any, error: BaseException | None) -> None:
    _on(job.loop, _resolve, job.result, result, error)


def _on(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


# --------------------------------------------------------------------------------------------------- fork, exit

_workers: WeakSet[Worker] = WeakSet()
_registering = threading.Lock()
_held: list[Worker] = []
_inherited: list[Worker] = []
"""Of a process that was forked without notice: closing their connections here would disturb the parent."""


def _before_fork() -> None:
    """Close every file while no thread uses it: a child with SQLite's own idea of the parent's locks would damage it.

    The parent opens its files again at their next use.
    """
    _registering.acquire()
    for worker in list(_workers):
        worker.gate.acquire()
        worker.disconnect()
        _held.append(worker)


def _after_fork_in_parent() -> None:
    for worker in _held:
        worker.gate.release()
    _held.clear()
    _registering.release()


def _after_fork_in_child() -> None:
    global _registering
    _registering = threading.Lock()
    _inherited.extend(_workers)
    _workers.clear()
    _held.clear()


def join(seconds: float) -> None:
    """Wait at most so long for all that were told to stop."""
    deadline = time.monotonic() + seconds
    for worker in list(_workers):
        worker.thread.join(max(0.0, deadline - time.monotonic()))


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
