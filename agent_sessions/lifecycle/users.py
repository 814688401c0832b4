"""What is decided for one user at a time: one active session, no more sessions than allowed, erasure.

A key of its own stands for the user, by a hash: it may outlast the user for a moment. It holds no session. Its lease
makes those who create sessions for the user follow one another, and it names the sessions that they made lately: the
index of a backend may show those later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from secrets import token_bytes
from typing import TypeVar

from .. import codec
from ..background import finished, uncancelled
from ..errors import SessionBusyError, SessionError
from ..stores.base import Commit, Key, LeaseWanted, Opened, Store, Wanted
from ..stores.lifetime import Lifetime
from ..turns.commits import Traffic, repeated, store_commit
from ..turns.leases import LeaseKeeper, new_owner

logger = logging.getLogger("agent_sessions")

T = TypeVar("T")

PATIENCE_S = 60.0
RECENT = 100
RECENT_MS = 60_000
"""So long an index may lag behind."""

ERASED_MS = 60_000
"""So long after an erasure a session that was being made for the user meanwhile is taken back."""

_RECENT = "recent"


class UserTurn:
    """A turn on a user's key."""

    def __init__(self, recent: dict[str, int], now: int) -> None:
        self._recent = {session_id: at for session_id, at in recent.items() if at + RECENT_MS > now}
        self._now = now
        self.changed = False

    @property
    def recent(self) -> list[str]:
        """The sessions that were made lately."""
        return list(self._recent)

    def remember(self, session_id: str) -> None:
        """A session was made."""
        self._recent[session_id] = self._now
        self.changed = True

    def encoded(self) -> bytes:
        return codec.encode(dict(list(self._recent.items())[-RECENT:]))


class UserKeys:
    """The keys of a tenant's users."""

    def __init__(self, store: Store, tenant: str, lease_ms: int, leases: LeaseKeeper | None = None) -> None:
        self._store = store
        self._tenant = tenant
        self._lease_ms = lease_ms
        self._leases = leases

    @asynccontextmanager
    async def turn(self, user_id: str, instead: Callable[[], Awaitable[T | None]]) -> AsyncIterator[UserTurn | T]:
        """Be alone with a user: others that decide for the same one wait.

        Whoever has to wait looks now and then for what would do `instead`, and gets that, if it is not None.
        """
        key, owner = self._key("user", user_id), new_owner()
        opened = await self._take(key, owner, instead)
        if not isinstance(opened, Opened):
            yield opened
            return
        fields = {} if opened.row is None else opened.row.fields or {}
        user = UserTurn(codec.decode(fields[_RECENT]) if _RECENT in fields else {}, opened.now)
        if self._leases is not None:
            self._leases.hold(key, owner)
        try:
            yield user
        finally:
            if self._leases is not None:
                self._leases.drop(owner)
            await uncancelled(self._leave(key, owner, user))

    async def _leave(self, key: Key, owner: str, user: UserTurn | None = None) -> None:
        """End a turn on a user's key. What was made in it is made: that this fails is logged, not raised."""
        try:
            if user is None or not user.changed:
                await self._store.release(key, owner)
                return
            commit = Commit(
                id=token_bytes(8),
                owner=owner,
                expected=None,
                lifetime=Lifetime(ttl_ms=RECENT_MS),
                fields={_RECENT: user.encoded()},
            )
            await store_commit(self._store, key, commit, self._lease_ms, Traffic())
        except SessionError as error:
            logger.warning("the lease on a user could not be given up (%s); it will run out", error.code)

    async def forget(self, user_id: str) -> None:
        """Remove what is known of a user here, but for the mark."""
        await self._store.delete(self._key("user", user_id), token_bytes(8))

    async def mark_erased(self, user_id: str) -> None:
        """From now on, and for a minute, sessions that are made for the user are taken back."""
        commit = Commit(
            id=token_bytes(8), owner="erasure", expected=None, lifetime=Lifetime(ttl_ms=ERASED_MS), fields={"": b"\xc3"}
        )
        key = self._key("erased", user_id)
        await finished(lambda: store_commit(self._store, key, commit, self._lease_ms, Traffic()))

    async def is_erased(self, user_id: str) -> bool:
        """Whether the user is being erased, or was a moment ago. It is asked again while the store is silent."""
        key = self._key("erased", user_id)
        opened = await repeated(lambda: self._store.open(key, wanted=Wanted(values=False)), self._lease_ms)
        return opened.row is not None

    def _key(self, what: str, user_id: str) -> Key:
        name = blake2b(user_id.encode(), digest_size=16, person=b"user").hexdigest()
        return Key(self._tenant, "system", f"{what}/{name}")

    async def _take(self, key: Key, owner: str, instead: Callable[[], Awaitable[T | None]]) -> Opened | T:
        try:
            opened = await self._queue(key, owner, instead)
        except BaseException:
            await uncancelled(self._leave(key, owner))
            raise
        if not isinstance(opened, Opened):
            await uncancelled(self._leave(key, owner))
        return opened

    async def _queue(self, key: Key, owner: str, instead: Callable[[], Awaitable[T | None]]) -> Opened | T:
        started = time.monotonic()
        queue = False
        while True:
            opened = await self._store.open(
                key, wanted=Wanted(values=False), lease=LeaseWanted(owner, self._lease_ms, queue)
            )
            if opened.granted:
                return opened
            if (found := await instead()) is not None:
                return found
            if time.monotonic() - started > PATIENCE_S:
                raise SessionBusyError("the user is busy: sessions are being made for the same one all the time")
            if queue:
                await self._store.wait(key, owner, 1.0)
            queue = True
