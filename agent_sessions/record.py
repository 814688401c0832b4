"""What is known about a session, without its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .stores.base import Key, Lease, Row
from .turns.image import Image
from .turns.values import decode_field


@dataclass(frozen=True)
class SessionRecord:
    """The record of a session. All times are aware, in UTC."""

    session_id: str
    tenant_id: str
    user_id: str | None
    metadata: dict[str, Any] = field(repr=False)
    started_at: datetime
    last_active_at: datetime
    """When the last turn was committed."""
    gone_at: datetime | None
    """When the session goes by itself, if nothing happens until then. None: never."""
    revision: int
    """How many commits it has seen."""


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
    return None if image.row is None else record_from(key, image.row, image.version.revision)


def record_from(key: Key, row: Row, revision: int) -> SessionRecord:
    """The record that a row holds."""
    metadata = (row.fields or {}).get("metadata")
    return SessionRecord(
        session_id=key.id,
        tenant_id=key.tenant,
        user_id=row.belongs_to,
        metadata={} if metadata is None else decode_field(key, "metadata", metadata),
        started_at=as_time(row.started_at),
        last_active_at=as_time(row.active_at),
        gone_at=None if row.gone_at is None else as_time(row.gone_at),
        revision=revision,
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
    """An aware datetime of a store's time."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
