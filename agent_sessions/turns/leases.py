"""Keeping leases alive while turns run, whatever the user's event loop is doing."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from weakref import WeakSet

from .. import background
from ..errors import SessionError
from ..stores.base import Key, Store

logger = logging.getLogger("agent_sessions")

RENEWALS_PER_LEASE = 4

_keepers: WeakSet[LeaseKeeper] = WeakSet()


def new_owner() -> str:
    """A lease owner that tells a person where the turn runs: host, process and a number of its own."""
    return f"{_HOST}/{os.getpid()}/{secrets.token_hex(4)}"


_HOST = socket.gethostname()[:24]


class LeaseKeeper:
    """Renews the leases of all running turns of one store, from the background thread."""

    def __init__(self, store: Store, lease_ms: int) -> None:
        self._store = store
        self._lease_ms = lease_ms
        self._held: dict[str, tuple[Key, float]] = {}
        self._running = False
        self._lock = threading.Lock()
        _keepers.add(self)

    def hold(self, key: Key, owner: str) -> None:
        """Keep this lease, just taken, alive from now on."""
        with self._lock:
            self._held[owner] = (key, time.monotonic())
            start, self._running = not self._running, True
        if start:
            background.spawn(self._keep)

    def drop(self, owner: str) -> None:
        """Stop renewing; not an error if it is unknown."""
        self._held.pop(owner, None)

    async def _keep(self) -> None:
        interval = self._lease_ms / 1000 / RENEWALS_PER_LEASE
        while True:
            await asyncio.sleep(interval)
            with self._lock:
                self._running = bool(self._held)
                if not self._running:
                    return
            due = time.monotonic() - interval / 2
            await asyncio.gather(
                *(self._renew(key, owner) for owner, (key, since) in list(self._held.items()) if since <= due)
            )

    async def _renew(self, key: Key, owner: str) -> None:
        try:
            if await self._store.renew(key, owner, self._lease_ms) or owner not in self._held:
                return
            logger.warning(
                "the lease of %s %r was lost; if another turn took it, the commit will be refused", key.kind, key.id
            )
            self.drop(owner)
        except Exception as error:  # one that can't be renewed must not end the renewal of all others
            reason = error.code if isinstance(error, SessionError) else type(error).__name__
            logger.warning("the lease of %s %r could not be renewed (%s); trying again", key.kind, key.id, reason)


def _after_fork() -> None:
    for keeper in list(_keepers):  # the turns that run are the parent's
        keeper._held, keeper._running, keeper._lock = {}, False, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
