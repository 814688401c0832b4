"""Seeing who holds a session, and breaking its lease."""

from __future__ import annotations

from ..errors import InvalidError
from ..record import LockInfo, lock_info
from ..stores.base import Wanted
from .tenant import TenantSessions


class Locking(TenantSessions):
    """`lock` and `unlock`: what a person needs when a session is stuck."""

    async def lock(self, session_id: str) -> LockInfo | None:
        """Who holds the session's lease, since when, and how many wait; None if nobody does."""
        key = await self._owned(session_id)
        opened = await self.store.open(key, wanted=Wanted(values=False))
        return None if opened.lease is None else lock_info(key, opened.lease, opened.waiters)

    async def unlock(self, session_id: str, *, force: bool) -> LockInfo | None:
        """Break the session's lease and let the next turn in; returns who held it, or None.

        What the broken turn wrote is safe to lose: its commit is refused as soon as another turn has taken over.

        Args:
            session_id: The session.
            force: Must be True: the turn that holds the lease may well be alive.
        """
        if force is not True:
            raise InvalidError("FORCE", "breaking a lease needs force=True; `lock` tells who holds it", field="force")
        key = await self._owned(session_id)
        broken = await self.store.unlock(key)
        return None if broken is None else lock_info(key, broken, 0)
