"""Changing a session's record, beside a turn that may be running on it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from msgspec import UNSET, UnsetType

from .. import codec
from ..background import finished
from ..durations import milliseconds
from ..errors import SessionConflictError, SessionNotFoundError
from ..record import SessionRecord, record_from
from ..stores.base import Amend, Row, Wanted
from ..stores.lifetime import Own
from ..turns.commits import store_amend
from .arguments import (
    LATEST_MS,
    added_time,
    check_description,
    check_expires_at,
    check_metadata,
    check_ttl,
    merged_metadata,
)
from .tenant import TenantSessions

_TRIES = 50
"""How often a change of a record is tried while others change it as well."""


class Changing(TenantSessions):
    """`touch`, `update` and `extend`."""

    async def touch(self, session_id: str) -> SessionRecord:
        """Note an activity: an idle session is active again.

        Raises:
            SessionNotFoundError, SessionEndedError, SessionExpiredError: There is nothing to touch any more.
        """
        return await self._amended(session_id, activity=True)

    async def update(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        description: str | UnsetType | None = UNSET,
        ttl: float | timedelta | str | UnsetType | None = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
    ) -> SessionRecord:
        """Change a session's record, beside a turn that may be running. It is no activity.

        Args:
            session_id: The session.
            metadata: Merged into what there is, at the top level; None as a value removes a key.
            description: The new one; None removes it.
            ttl: The new one, as in `create`; None: as configured again.
            expires_at: The new end; None removes it.

        Raises:
            SessionNotFoundError, SessionEndedError, SessionExpiredError: There is nothing to change any more.
        """
        merged = None if metadata is None else check_metadata(metadata)

        async def change(row: Row, now: int) -> dict[str, Any]:
            changes: dict[str, Any] = {"fields": {}}
            if merged is not None:
                held = codec.decode((row.fields or {}).get("metadata", codec.encode({})))
                changes["fields"]["metadata"] = codec.encode(merged_metadata(held, merged))
            if description is not UNSET:
                text = None if description is None else codec.encode(check_description(description))
                changes["fields"]["description"] = text
            if ttl is not UNSET:
                changes["own"] = _with_ttl(row.own, ttl)
                changes["lifetime"] = await self._lifetime()
            if expires_at is not UNSET:
                changes["expires_at"] = None if expires_at is None else check_expires_at(expires_at, now)
            return changes

        return await self._changed(session_id, change)

    async def extend(
        self, session_id: str, *, hours: float | None = None, seconds: float | None = None
    ) -> SessionRecord:
        """Move the session's end further away, which is an activity.

        An end that was given (`expires_at`) moves by so much: 1 h more and 6 h more are 7 h more. If none was given, it
        ends so much later than its TTL would have let it go, and that end is in force from then on; without a TTL it
        goes on without end. It never lies beyond the absolute timeout: the record's `expires_at` tells.

        Raises:
            InvalidError: `INVALID_DURATION`: neither or both are given, or not more than 0.
            SessionNotFoundError, SessionEndedError, SessionExpiredError: There is nothing to extend any more.
        """
        added = milliseconds(added_time(hours, seconds))

        async def change(row: Row, now: int) -> dict[str, Any]:
            in_force = await self._lifetime()
            lifetime = in_force.but(row.own)
            changes: dict[str, Any] = {"activity": True, "lifetime": in_force}
            if row.expires_at is not None:
                expires_at = row.expires_at + added
            elif lifetime.ttl_ms is not None:
                expires_at = now + lifetime.ttl_ms + added
                changes["own"] = {**row.own, "ttl_ms": None}
            else:
                return changes
            oldest = LATEST_MS if lifetime.absolute_ms is None else row.started_at + lifetime.absolute_ms
            return {**changes, "expires_at": min(expires_at, oldest, LATEST_MS)}

        return await self._changed(session_id, change)

    async def _amended(self, session_id: str, *, activity: bool) -> SessionRecord:
        key = await self._owned(session_id)
        amend = Amend(id=secrets.token_bytes(8), activity=activity, lifetime=await self._lifetime())
        amended = await finished(lambda: store_amend(self.store, key, amend, self.lease_ms))
        self._listeners.tell("touched", key, user_id=amended.row.belongs_to)
        return record_from(key, amended.row, amended.revision, amended.now)

    async def _changed(self, session_id: str, change: Callable[[Row, int], Awaitable[dict[str, Any]]]) -> SessionRecord:
        """Amend by what follows from the record as it is; again, if it changed meanwhile."""
        key = self._session_key(session_id)
        for _ in range(_TRIES):
            opened = await self.store.open(key, wanted=Wanted(values=False))
            if opened.row is None:
                raise SessionNotFoundError(f"there is no session {session_id!r}")
            self._check_owner(key, opened.row.belongs_to)
            amend = Amend(
                id=secrets.token_bytes(8),
                expected_tag=opened.row.record_tag,
                **await change(opened.row, opened.now),
            )
            try:
                amended = await finished(partial(store_amend, self.store, key, amend, self.lease_ms))
            except SessionConflictError:
                continue
            return record_from(key, amended.row, amended.revision, amended.now)
        raise SessionConflictError(f"the record of session {session_id!r} is changed too often to change it")


def _with_ttl(own: Own, ttl: object) -> Own:
    kept = {name: value for name, value in own.items() if name != "ttl_ms"}
    return kept if ttl is None else {**kept, "ttl_ms": check_ttl(ttl)}
