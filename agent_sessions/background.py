"""The one background thread: it carries the store I/O of the sync surface and the renewal of leases, no user code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from .errors import SessionError

T = TypeVar("T")

_lock = threading.Lock()
_portal: BlockingPortal | None = None
_loop: asyncio.AbstractEventLoop | None = None


def portal() -> BlockingPortal:
    """The portal into the background thread's event loop; the thread starts at first use and ends with the process."""
    global _portal
    if _portal is None:
        with _lock:
            if _portal is None:
                _portal = _start()
    return _portal


def _start() -> BlockingPortal:
    started = threading.Event()
    made: list[BlockingPortal] = []

    async def serve() -> None:
        global _loop
        _loop = asyncio.get_running_loop()
        async with BlockingPortal() as served:
            made.append(served)
            started.set()
            await served.sleep_until_stopped()

    threading.Thread(target=anyio.run, args=(serve,), name="agent-sessions", daemon=True).start()
    started.wait()
    return made[0]


def call(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run one of the library's own coroutine functions in the background thread and wait for it."""
    return portal().call(function, *args)


def spawn(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start one of the library's own coroutine functions in the background thread, from any thread."""
    portal()
    assert _loop is not None
    # In a context of its own: it outlives the caller, whose turn and trace it must not keep.
    Context().run(asyncio.run_coroutine_threadsafe, function(), _loop)


async def finished(work: Callable[[], Awaitable[T]]) -> T:
    """Await something that can be done twice without harm; if this task is cancelled meanwhile, do it again to its end.

    The cancellation is raised then. So what is seldom cancelled needs no task of its own.
    """
    try:
        return await work()
    except asyncio.CancelledError:
        with contextlib.suppress(SessionError):  # the cancellation is what the caller gets
            await uncancelled(work())
        raise


async def uncancelled(work: Awaitable[T]) -> T:
    """Await something to its end even if this task is cancelled meanwhile; the cancellation is raised then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait({task})
                except asyncio.CancelledError:
                    continue
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what the caller gets
        raise


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of these at once, to their end; if some fail, raise the first error then. None is left running."""
    results: list[T] = []
    for done in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
        results.append(done)
    return results


def _after_fork() -> None:
    global _portal, _lock
    _portal, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
