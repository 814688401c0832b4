"""What is known about a session, without its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from .stores.base import Found, Key, Lease, Opened, Row
from .stores.lifetime import Status
from .stores.whole import commits_seen
from .turns.image import Image
from .turns.values import decode_field

MESSAGES, MEMORIES = "messages", "memories"
"""The counters of a record."""

END_REASONS = ("explicit", "replaced", "revoked", "expired", "idle")


@dataclass(frozen=True)
class SessionRecord:
    """The record of a session as it was when it was read. All times are aware, in UTC."""

    session_id: str
    tenant_id: str
    user_id: str | None
    agent_id: str | None
    memory_space_id: str | None
    description: str | None = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    status: Status
    """`active`; `idle` when it rested for long; `ended` when it takes no more writes."""
    end_reason: str | None
    """Why it has ended: `explicit`, `replaced`, `revoked`, `expired`, `idle`."""
    started_at: datetime
    last_active_at: datetime
    """When its last turn was committed, or it was touched."""
    ended_at: datetime | None
    """When it ended, by itself or not."""
    expires_at: datetime | None
    """The end that it was given."""
    ttl: timedelta | None
    """So long after its last activity it is gone, unless it ended before. None: never."""
    gone_at: datetime | None
    """When it goes by itself, if nothing happens until then. None: never."""
    time_remaining: timedelta | None
    """How long it could still be used, resting from now on. None: without end."""
    message_count: int
    """How many messages its conversations have, in all frameworks; those of child runs are not counted."""
    memory_count: int
    revision: int
    """How many commits it has seen."""
    forked_from: str | None = None


@dataclass(frozen=True)
class LockInfo:
    """Who holds a session's lease."""

    session_id: str
    owner: str
    """Host, process and turn: `host/4711/5f0c...`."""
    host: str
    process: int | None
    since: datetime
    until: datetime
    """When the lease runs out, unless its holder, if it lives, renews it."""
    waiters: int
    """How many turns stand in the queue."""


def record_of(key: Key, image: Image) -> SessionRecord | None:
    """The record in an image; None of an absent session."""
    return None if image.row is None else record_from(key, image.row, image.version.revision, image.now)


def record_found(scope: Key, found: Found, now: int) -> SessionRecord:
    """The record of a place in a listing."""
    return record_from(scope._replace(id=found.id), found.row, found.revision, now)


def record_opened(key: Key, opened: Opened) -> SessionRecord | None:
    """The record of a key that was opened with all its fields."""
    return None if opened.row is None else record_from(key, opened.row, opened.version.revision, opened.now)


def record_from(key: Key, row: Row, revision: int, now: int) -> SessionRecord:
    """The record that a row holds."""
    fields = {name: decode_field(key, name, data) for name, data in (row.fields or {}).items()}
    status = row.stamps.status(now)
    by_itself = "expired" if row.expires else "idle"
    return SessionRecord(
        session_id=key.id,
        tenant_id=key.tenant,
        user_id=row.belongs_to,
        agent_id=fields.get("agent_id"),
        memory_space_id=fields.get("memory_space_id"),
        description=fields.get("description"),
        metadata=fields.get("metadata", {}),
        status=status,
        end_reason=fields.get("end_reason", by_itself) if status == "ended" else None,
        started_at=as_time(row.started_at),
        last_active_at=as_time(row.active_at),
        ended_at=_time(row.ends_at) if status == "ended" else None,
        expires_at=_time(row.expires_at),
        ttl=None if row.lifetime.ttl_ms is None else timedelta(milliseconds=row.lifetime.ttl_ms),
        gone_at=_time(row.gone_at),
        time_remaining=None if row.ends_at is None else timedelta(milliseconds=max(0, row.ends_at - now)),
        message_count=row.counters.get(MESSAGES, 0),
        memory_count=row.counters.get(MEMORIES, 0),
        revision=commits_seen(revision, row),
        forked_from=fields.get("forked_from"),
    )


def lock_info(key: Key, lease: Lease, waiters: int) -> LockInfo:
    """What a lease tells a person."""
    host, _, rest = lease.owner.partition("/")
    process = rest.partition("/")[0]
    return LockInfo(
        session_id=key.id,
        owner=lease.owner,
        host=host,
        process=int(process) if process.isdigit() else None,
        since=as_time(lease.since),
        until=as_time(lease.until),
        waiters=waiters,
    )


def as_time(milliseconds: int) -> datetime:
    """A store's time as an aware UTC datetime."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else as_time(milliseconds)
