"""Listing and counting sessions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from ..background import together
from ..errors import InvalidError
from ..identifiers import check_id
from ..record import SessionRecord, record_found
from ..stores.base import Cursor, Found, Key, Order
from ..stores.lifetime import Status
from .arguments import check_limit, check_metadata, check_offset, check_status, check_time
from .pages import SCANNED, Filters, SessionPage, Stats, read_cursor, write_cursor
from .tenant import BATCH, TenantSessions

_Records: TypeAlias = list[SessionRecord]  # `list` is an operation below


class Listing(TenantSessions):
    """`list`, `count`, `stats` and `get_active`."""

    async def count(
        self,
        user_id: str | None = None,
        *,
        tenant_id: str | None = None,
        status: Status | None = None,
        agent_id: str | None = None,
        memory_space_id: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """How many sessions there are. By user and status the index tells; with other filters all are looked at."""
        self = self._in(tenant_id)
        filters = _filters(
            self._user(user_id), status, agent_id, memory_space_id, started_after, started_before, metadata
        )
        if filters.has_index:
            return await self.store.count(self.tenant_id, "session", belongs_to=filters.user_id, status=filters.status)
        return len([1 async for record in self._all(filters.user_id, filters.status) if filters.match(record)])

    async def stats(self, *, tenant_id: str | None = None) -> Stats:
        """How many sessions the tenant has, by status."""
        self = self._in(tenant_id)
        self._check_maintenance()
        statuses: tuple[Status, ...] = get_args(Status)
        counts = await together(self.store.count(self.tenant_id, "session", status=status) for status in statuses)
        return Stats(**dict(zip(statuses, counts, strict=True)))

    async def get_active(self, user_id: str | None = None) -> list[SessionRecord]:
        """All of the user's sessions that are active, the most recently active first."""
        return [record async for record in self._all(self._needed_user(user_id), "active")]

    async def list(
        self,
        user_id: str | None = None,
        *,
        tenant_id: str | None = None,
        status: Status | None = None,
        agent_id: str | None = None,
        memory_space_id: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        order: Literal["activity", "started"] = "activity",
        limit: int = 50,
        cursor: str | None = None,
        offset: int = 0,
    ) -> SessionPage:
        """A page of sessions, those with the newest activity (or start) first.

        While sessions are written no page repeats one; one that became active after the first page may be missed.
        `order="started"` misses none. User and status have an index. With other filters a page looks at 1000 sessions
        at most: it may be short, or empty, and yet not the last.

        Args:
            user_id: Only the user's.
            tenant_id: Those of this tenant; None: of the manager's.
            status: Only of this status.
            agent_id: Only of this agent.
            memory_space_id: Only of this memory space.
            started_after: Only what started later.
            started_before: Only what started earlier.
            metadata: Only where the metadata has all these.
            order: What a page goes by.
            limit: The most sessions of a page, 1 to 1000.
            cursor: The `next_cursor` of the page before.
            offset: How many to pass over first. They are read as well: a cursor is the faster way.
        """
        self = self._in(tenant_id)
        filters = _filters(
            self._user(user_id), status, agent_id, memory_space_id, started_after, started_before, metadata
        )
        if order not in ("activity", "started"):
            raise InvalidError("ORDER", "order must be activity or started", field="order")
        by: Order = "activity" if order == "activity" else "start"
        place = read_cursor(cursor, by)
        limit, left_out = check_limit(limit), check_offset(offset)
        records: _Records = []
        looked_at = 0
        while True:
            asked = min(BATCH, limit - len(records) + left_out) if filters.has_index else BATCH
            page = await self._find(filters.user_id, filters.status, by, asked, place)
            for found in page.found:
                looked_at += not filters.has_index
                record = record_found(Key(self.tenant_id, "session", ""), found, page.now)
                if not filters.match(record):
                    continue
                if left_out:
                    left_out -= 1
                    continue
                records.append(record)
                if len(records) == limit:
                    is_last = page.next is None and found is page.found[-1]
                    return SessionPage(records, None if is_last else write_cursor(_place(found, by), by))
            place = page.next
            if place is None or (looked_at >= SCANNED and not left_out):
                return SessionPage(records, write_cursor(place, by))


def _place(found: Found, order: Order) -> Cursor:
    return Cursor(found.row.active_at if order == "activity" else found.row.started_at, found.id)


def _filters(
    user_id: str | None,
    status: Status | None,
    agent_id: str | None,
    memory_space_id: str | None,
    started_after: datetime | None,
    started_before: datetime | None,
    metadata: Mapping[str, Any] | None,
) -> Filters:
    return Filters(
        user_id=user_id,
        status=check_status(status),
        agent_id=None if agent_id is None else check_id(agent_id, "agent_id"),
        memory_space_id=None if memory_space_id is None else check_id(memory_space_id, "memory_space_id"),
        started_after=None if started_after is None else check_time(started_after, "started_after"),
        started_before=None if started_before is None else check_time(started_before, "started_before"),
        metadata={} if metadata is None else check_metadata(metadata),
    )
