"""What every lifecycle operation stands on: the sessions of one tenant, and who is asking for them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Literal, Self, TypeVar

from .. import codec
from ..auth import acting, agreed
from ..background import finished, together
from ..errors import ForbiddenError, InvalidError, SessionConflictError, SessionNotFoundError
from ..events import Listeners
from ..identifiers import check_id
from ..record import SessionRecord, record_found, record_opened
from ..settings import Settings
from ..stores.base import Amend, Amended, Cursor, Key, Order, Page, Store, Wanted
from ..stores.lifetime import Lifetime, Status
from ..turns.cache import ImageCache
from ..turns.commits import repeated, store_amend, store_delete
from ..turns.leases import LeaseKeeper
from .policies import Policies
from .users import UserKeys

T = TypeVar("T")

EndReason = Literal["explicit", "replaced", "revoked", "expired", "idle"]

BATCH = 200
"""How many sessions are looked at in one step of what goes through many."""

_AT_ONCE = 16


class TenantSessions:
    """Reaches the sessions of one tenant, as far as the identity that is acting may."""

    store: Store
    settings: Settings
    lease_ms: int
    leases: LeaseKeeper
    ttl_ms: int | None
    policies: Policies
    _cache: ImageCache
    _listeners: Listeners

    @property
    def tenant_id(self) -> str:
        """The tenant of every session that is reached."""
        raise NotImplementedError

    def _in(self, tenant_id: str | None) -> Self:
        """The same for the tenant that an argument names.

        Raises:
            ForbiddenError: This is for another one.
        """
        raise NotImplementedError

    @property
    def _users(self) -> UserKeys:
        return UserKeys(self.store, self.tenant_id, self.lease_ms, self.leases)

    def _session_key(self, session_id: object) -> Key:
        return Key(self.tenant_id, "session", check_id(session_id, "session_id"))

    async def _lifetime(self) -> Lifetime:
        return await self.policies.lifetime(self.tenant_id)

    # ------------------------------------------------------------------------------------------------ who is asking

    def _user(self, user_id: str | None) -> str | None:
        """The user of an operation: the argument, or the identity that is acting."""
        given = None if user_id is None else check_id(user_id, "user_id")
        return agreed(given, acting(self.store).user_id, "user_id")

    def _needed_user(self, user_id: str | None) -> str:
        found = self._user(user_id)
        if found is None:
            raise InvalidError("USER_ID", "say which user, by user_id or by acting_as", field="user_id")
        return found

    def _check_owner(self, key: Key, belongs_to: str | None, given: str | None = None) -> None:
        """Refuse what is not the given user's, or, if ownership is enforced, not that of who is acting.

        What is nobody's is anybody's.
        """
        if belongs_to is not None and any(user not in (None, belongs_to) for user in (given, self._enforced)):
            raise ForbiddenError(f"session {key.id!r} belongs to another user", field="user_id")

    @property
    def _enforced(self) -> str | None:
        """The user who reaches nothing of others; None: no matter whose it is."""
        return acting(self.store).user_id if self.settings.enforce_ownership else None

    async def _owned(self, session_id: object) -> Key:
        """The key of a session that who is acting may touch. Whose it is never changes once it is somebody's."""
        key = self._session_key(session_id)
        if self._enforced is not None:
            row = (await self.store.open(key, wanted=Wanted(values=False))).row
            self._check_owner(key, None if row is None else row.belongs_to)
        return key

    def _check_maintenance(self) -> None:
        """Refuse to a user, if ownership is enforced, what goes through the sessions of all users."""
        if self._enforced is not None:
            raise ForbiddenError("this concerns the sessions of all users: do it without acting_as", field="user_id")

    # ------------------------------------------------------------------------------------------------ one session

    async def _now(self) -> int:
        """The store's time."""
        return (await self.store.open(Key(self.tenant_id, "system", "clock"), wanted=Wanted(values=False))).now

    async def _read(self, key: Key) -> SessionRecord | None:
        return record_opened(key, await self.store.open(key, wanted=Wanted(values=False)))

    async def _read_back(self, key: Key) -> SessionRecord:
        """What was made just now, asked again while the store is silent."""
        record = await repeated(lambda: self._read(key), self.lease_ms)
        if record is None:
            raise SessionNotFoundError(f"session {key.id!r} was past its time already, or is deleted")
        return record

    async def _end(self, key: Key, reason: EndReason) -> tuple[Amended, bool]:
        """End a session; tell also whether it was this that ended it."""
        amend = Amend(id=secrets.token_bytes(8), end=True, fields={"end_reason": codec.encode(reason)})
        amended = await finished(lambda: store_amend(self.store, key, amend, self.lease_ms))
        self._cache.drop(key)
        did_it = amended.changed or amended.row.record_tag == amend.id  # the latter if a reply was lost
        if did_it:
            self._listeners.tell("ended", key, user_id=amended.row.belongs_to, reason=reason)
        return amended, did_it

    async def _end_if_there(self, session_id: str, reason: EndReason) -> bool:
        try:
            _, did_it = await self._end(self._session_key(session_id), reason)
        except SessionNotFoundError:
            return False
        return did_it

    async def _unless_erased(self, key: Key, user_id: str | None) -> None:
        """Take a new session back whose user is being erased: the erasure may have passed it by."""
        if user_id is not None and await self._users.is_erased(user_id):
            await finished(lambda: store_delete(self.store, key, self.lease_ms))
            self._cache.drop(key)
            raise SessionConflictError(f"user {user_id!r} is being erased; try again later", field="user_id")

    # ------------------------------------------------------------------------------------------------ many sessions

    async def _find(
        self, user_id: str | None, status: Status | None, order: Order, limit: int, cursor: Cursor | None
    ) -> Page:
        return await self.store.find(
            self.tenant_id, "session", belongs_to=user_id, status=status, order=order, limit=limit, cursor=cursor
        )

    async def _all(self, user_id: str | None, status: Status | None) -> AsyncIterator[SessionRecord]:
        """All sessions, page by page, the most recently active first."""
        scope = Key(self.tenant_id, "session", "")
        place: Cursor | None = None
        while True:
            page = await self._find(user_id, status, "activity", BATCH, place)
            for found in page.found:
                yield record_found(scope, found, page.now)
            place = page.next
            if place is None:
                return

    async def _live(self, user_id: str) -> dict[str, SessionRecord]:
        """The user's sessions that have not ended. The idle ones first: one that is touched meanwhile is seen then."""
        return {
            record.session_id: record for status in ("idle", "active") async for record in self._all(user_id, status)
        }

    async def _for_each(self, items: Sequence[Any], work: Callable[[Any], Awaitable[T]]) -> list[T]:
        """Work on all, a few at once. If one fails, the others of its group are done with before it is raised."""
        results: list[T] = []
        for start in range(0, len(items), _AT_ONCE):
            results += await together(map(work, items[start : start + _AT_ONCE]))
        return results
