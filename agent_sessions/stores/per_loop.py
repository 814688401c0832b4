"""What a store opens once for each event loop that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

CLOSING_S = 2.0
"""For so long a loop in another thread may take to close its client."""


class LoopBound(Protocol):
    """A client that lives on one event loop."""

    async def aclose(self) -> None:
        """Close it, on its loop."""
        ...

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        ...


C = TypeVar("C", bound=LoopBound)


class PerLoop(Generic[C]):
    """The clients of a store, one for each running event loop, made when first needed there.

    A child process never touches what its parent opened: also closing it there would disturb the parent.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, C] = {}
        self._inherited: list[object] = []

    def current(self) -> C:
        """The running loop's."""
        if self._pid != os.getpid():
            self._forget_the_parents()
        loop = asyncio.get_running_loop()
        found = self._by_loop.get(loop)
        return found if found is not None else self._made(loop)

    async def detach(self) -> None:
        """Close the running loop's."""
        if self._pid != os.getpid():
            self._forget_the_parents()
        found = self._by_loop.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.aclose()

    async def aclose(self) -> None:
        """Close all, on whichever loop they are."""
        await self.detach()
        with self._lock:
            others = list(self._by_loop.items())
            self._by_loop.clear()
        for loop, client in others:
            if loop.is_running():
                closing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.aclose(), loop))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(closing, CLOSING_S)
            else:
                client.abandon()

    def _made(self, loop: asyncio.AbstractEventLoop) -> C:
        with self._lock:
            for closed in [other for other in self._by_loop if other.is_closed()]:
                self._by_loop.pop(closed).abandon()
            made = self._by_loop[loop] = self._make()
            return made

    def _forget_the_parents(self) -> None:
        self._inherited.append(self._by_loop)
        self._by_loop = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
