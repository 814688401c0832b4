"""Letting one in at a time, whichever event loops and threads they come from."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from concurrent.futures import Future


class Gate:
    """An async lock that belongs to no event loop: `async with gate`. Who comes first is served first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[Future[None]] = deque()
        self._loops: Counter[asyncio.AbstractEventLoop] = Counter()

    def is_used_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether somebody on this event loop is in, or waits: then blocking the loop would block the gate."""
        with self._lock:
            return self._loops[loop] > 0

    async def __aenter__(self) -> None:
        with self._lock:
            place: Future[None] | None = Future() if self._is_taken else None
            self._is_taken = True
            self._loops[asyncio.get_running_loop()] += 1
            if place is not None:
                self._waiting.append(place)
        if place is None:
            return
        try:
            await asyncio.shield(asyncio.wrap_future(place))
        except BaseException:
            self._leave(place)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave(None)

    def _leave(self, place: Future[None] | None) -> None:
        with self._lock:
            self._loops[asyncio.get_running_loop()] -= 1
            if place is not None and place in self._waiting:  # cancelled while it stood there
                self._waiting.remove(place)
            elif self._waiting:
                self._waiting.popleft().set_result(None)
            else:
                self._is_taken = False
