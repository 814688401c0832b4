"""Keeping no more activations of a session than the last hundred, without reading the others."""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary, WeakSet

from ..errors import SessionError
from ..manager import SessionManager
from ..stores.base import Cursor, Key, Store
from ..turns.leases import LeaseKeeper

logger = logging.getLogger("agent_sessions")

KEPT = 100
"""So many activations of a session are kept, and up to `SPARE` more until they are removed together."""
SPARE = 16

_MOST_SESSIONS = 1024
_LOOK_CHANCE = 1 / 64
"""How often a run asks whether other processes have written more than that."""

_Session = tuple[str, str]


class Ledger:
    """The activations that this process has written of late, by session. Thread-safe.

    Each process removes what is too old of its own. So a session whose runs are all in one process is kept in bounds
    without asking the store for anything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: OrderedDict[_Session, deque[str]] = OrderedDict()
        _ledgers.add(self)

    def note(self, tenant_id: str, session_id: str, activation_id: str) -> Sequence[str]:
        """Note an activation that has ended; returns those that are too old by now, which are forgotten."""
        with self._lock:
            written = self._written.setdefault((tenant_id, session_id), deque())
            self._written.move_to_end((tenant_id, session_id))
            written.append(activation_id)
            if len(self._written) > _MOST_SESSIONS:
                self._written.popitem(last=False)
            if len(written) < KEPT + SPARE:
                return ()
            return [written.popleft() for _ in range(SPARE)]


_ledgers: WeakSet[Ledger] = WeakSet()
_by_leases: WeakKeyDictionary[LeaseKeeper, Ledger] = WeakKeyDictionary()


def ledger_of(manager: SessionManager) -> Ledger:
    """What has been written by way of a manager, for whichever tenant: those of all tenants share the leases."""
    ledger = _by_leases.get(manager.leases)
    return _by_leases.setdefault(manager.leases, Ledger()) if ledger is None else ledger


def is_time_to_look() -> bool:
    """Whether a run should have a look at what other processes have written."""
    return random.random() < _LOOK_CHANCE


async def remove(store: Store, tenant_id: str, session_id: str, ids: Sequence[str], *, look: bool) -> None:
    """Remove these activations of a session, and, with `look`, all that are too old. What goes wrong is logged."""
    try:
        for id in ids:
            await _delete(store, tenant_id, id)
        if look and await store.count(tenant_id, "run", belongs_to=session_id) > KEPT + 2 * SPARE:
            await _remove_old(store, tenant_id, session_id)
    except Exception as error:
        reason = error.code if isinstance(error, SessionError) else type(error).__name__
        logger.warning("old activations of session %r could not be removed: %s", session_id, reason)


async def _remove_old(store: Store, tenant_id: str, session_id: str) -> None:
    place: Cursor | None = None
    while True:
        page = await store.find(tenant_id, "run", belongs_to=session_id, limit=KEPT, cursor=place)
        if place is not None:
            for found in page.found:
                await _delete(store, tenant_id, found.id)
        place = page.next
        if place is None:
            return


async def _delete(store: Store, tenant_id: str, id: str) -> None:
    await store.delete(Key(tenant_id, "run", id), secrets.token_bytes(8))


def _after_fork() -> None:
    for ledger in list(_ledgers):  # whoever held a lock is not in this process, and what was written is the parent's
        ledger._lock, ledger._written = threading.Lock(), OrderedDict()


os.register_at_fork(after_in_child=_after_fork)
