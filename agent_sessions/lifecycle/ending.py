"""Ending sessions: one, all of a user, and what has run out by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import sample
from typing import Literal

from ..durations import duration, milliseconds
from ..errors import InvalidError
from ..identifiers import check_id
from ..record import END_REASONS, SessionRecord, record_from
from ..stores.base import Cursor, Key, Wanted
from .arguments import check_limit_of_batch
from .tenant import BATCH, EndReason, TenantSessions

_CHOSEN = END_REASONS[:3]
_PASSES = 10
_MOST_PARTS = 8
"""Into so many parts at most a page of what has run out is cut where others sweep, too."""


@dataclass(frozen=True)
class SessionSummary:
    """What a session was, at its end."""

    session_id: str
    started_at: datetime
    ended_at: datetime
    end_reason: str
    message_count: int
    memory_count: int

    @property
    def duration(self) -> timedelta:
        """How long it lasted."""
        return self.ended_at - self.started_at


@dataclass(frozen=True)
class EndedSessions:
    """Which sessions an `end_all` ended."""

    ended: int
    session_ids: list[str]


@dataclass(frozen=True)
class ExpiredSessions:
    """Which sessions an `expire_idle` ended, or would have."""

    expired: int
    session_ids: list[str]


class Ending(TenantSessions):
    """`end`, `end_all` and `expire_idle`."""

    async def end(
        self, session_id: str, *, reason: Literal["explicit", "replaced", "revoked"] = "explicit"
    ) -> SessionSummary:
        """End a session at once: a turn that is running on it can't store anything any more.

        Ending it again changes nothing, and tells the same. What has run out by the clock keeps that reason.

        Raises:
            SessionNotFoundError: There is none.
        """
        if reason not in _CHOSEN:
            raise InvalidError("REASON", f"reason must be one of {', '.join(_CHOSEN)}", field="reason")
        key = self._session_key(session_id)
        opened = await self.store.open(key, wanted=Wanted(values=False))
        why: EndReason = reason
        if (row := opened.row) is not None:
            self._check_owner(key, row.belongs_to)
            if row.stamps.status(opened.now) == "ended":
                why = "expired" if row.expires else "idle"  # of one that somebody ended, the first reason stays anyway
        amended, _ = await self._end(key, why)
        return _summary(record_from(key, amended.row, amended.revision, max(amended.now, amended.row.ended_at or 0)))

    async def end_all(self, user_id: str | None = None, *, except_session_id: str | None = None) -> EndedSessions:
        """End all of the user's sessions, but one that is kept (log out everywhere else)."""
        user_id = self._needed_user(user_id)
        kept = None if except_session_id is None else check_id(except_session_id, "except_session_id")
        session_ids: list[str] = []
        for _ in range(_PASSES):  # one that was touched while it was looked for may not have been seen
            ids = [id for id in await self._live(user_id) if id != kept]
            done = await self._for_each(ids, lambda id: self._end_if_there(id, "explicit"))
            ended = [id for id, did_it in zip(ids, done, strict=True) if did_it]
            session_ids += ended
            if not ended:
                break
        return EndedSessions(len(session_ids), session_ids)

    async def expire_idle(
        self,
        *,
        tenant_id: str | None = None,
        max_age: float | timedelta | str | None = None,
        dry_run: bool = False,
        limit: int = 10_000,
    ) -> ExpiredSessions:
        """Stamp the end of sessions that have run out, in batches; each is told once, whoever else runs this.

        Nothing depends on it: what ran out is ended without it. It puts the end down, so that listeners hear of it.

        Args:
            tenant_id: The tenant; None: the manager's.
            max_age: End as well what was last active longer ago than this, whatever its policy. A running turn is
                activity.
            dry_run: Only tell.
            limit: The most sessions to look at in one call.
        """
        self = self._in(tenant_id)
        self._check_maintenance()
        limit = check_limit_of_batch(limit)
        told: list[str] = []
        if max_age is not None:
            told += await self._expire_older(milliseconds(duration(max_age, "max_age")), dry_run, limit)
        told += await self._expire_run_out(dry_run, limit - len(told))
        return ExpiredSessions(len(told), told)

    async def _expire_run_out(self, dry_run: bool, limit: int) -> list[str]:
        told: list[str] = []
        looked_at, parts = 0, 1
        while looked_at < limit:
            asked = limit if dry_run else min(BATCH, limit - looked_at)
            found = (await self.store.run_out(self.tenant_id, "session", limit=asked)).found
            is_last = len(found) < asked
            if parts > 1:  # who sweeps at the same time has the same page: each takes another part of it
                found = sample(found, -(-len(found) // parts))
            looked_at += len(found)
            reasons: dict[str, EndReason] = {one.id: "expired" if one.row.expires else "idle" for one in found}
            ended = [*reasons] if dry_run else await self._expire(reasons)
            told += ended
            if dry_run or (is_last and (parts == 1 or not ended)):
                break
            parts = max(1, parts // 2) if len(ended) == len(found) else _MOST_PARTS
        return told

    async def _expire_older(self, age_ms: int, dry_run: bool, limit: int) -> list[str]:
        told: list[str] = []
        looked_at, oldest = 0, Cursor(await self._now() - age_ms, "")
        for status in ("active", "idle"):
            place: Cursor | None = oldest
            while place is not None and looked_at < limit:
                page = await self._find(None, status, "activity", min(BATCH, limit - looked_at), place)
                looked_at += len(page.found)
                busy = await self._for_each(page.found, lambda found: self._is_held(found.id))
                ids = [found.id for found, held in zip(page.found, busy, strict=True) if not held]
                told += ids if dry_run else await self._expire(dict.fromkeys(ids, "idle"))
                place = page.next
        return told

    async def _expire(self, reasons: Mapping[str, EndReason]) -> list[str]:
        ids = list(reasons)
        done = await self._for_each(ids, lambda id: self._end_if_there(id, reasons[id]))
        return [id for id, did_it in zip(ids, done, strict=True) if did_it]

    async def _is_held(self, session_id: str) -> bool:
        key = Key(self.tenant_id, "session", session_id)
        return (await self.store.open(key, wanted=Wanted(values=False))).lease is not None


def _summary(record: SessionRecord) -> SessionSummary:
    assert record.ended_at is not None
    return SessionSummary(
        session_id=record.session_id,
        started_at=record.started_at,
        ended_at=record.ended_at,
        end_reason=record.end_reason or "explicit",
        message_count=record.message_count,
        memory_count=record.memory_count,
    )
