"""Sweeping caches in the background: what is erased elsewhere must not stay in the memory of a process that rests."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Protocol
from weakref import WeakSet

from . import background

MOST_SECONDS = 300.0
"""So long, at most, a cache keeps what was neither used nor checked."""

SWEEP_SECONDS = 30.0
"""How often caches are swept, while there is anything in them."""

_lock = threading.Lock()
_sweeping = False


class Swept(Protocol):
    """A cache. It is called from the background thread."""

    def __len__(self) -> int:
        """How much there is in it."""
        ...

    def sweep(self) -> None:
        """Drop what would be too old before the next sweep."""
        ...


_caches: WeakSet[Swept] = WeakSet()


def sweep_regularly(cache: Swept) -> None:
    """Sweep a cache in which something was put just now, for as long as there is anything in it."""
    global _sweeping
    with _lock:
        _caches.add(cache)
        start, _sweeping = not _sweeping, True
    if start:
        background.spawn(_sweep)


async def _sweep() -> None:
    """Sweep all caches of the process for as long as there is anything in them."""
    while _sweep_once():  # noqa: ASYNC110 - what it waits for is time
        await asyncio.sleep(SWEEP_SECONDS)


def _sweep_once() -> bool:
    global _sweeping
    with _lock:
        for cache in list(_caches):
            cache.sweep()
        _sweeping = any(map(len, list(_caches)))
        return _sweeping


def _after_fork() -> None:
    global _lock, _sweeping, _caches
    _lock, _sweeping, _caches = threading.Lock(), False, WeakSet()


os.register_at_fork(after_in_child=_after_fork)
