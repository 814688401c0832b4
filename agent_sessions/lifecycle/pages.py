"""What a listing is asked for and answers: filters, pages, cursors."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from ..errors import InvalidError
from ..identifiers import check_id
from ..record import SessionRecord
from ..stores.base import Cursor, Order
from ..stores.lifetime import Status
from .arguments import LATEST_MS, check_time

SCANNED = 1000
"""How many sessions one page looks at, at most, where a filter has no index: it may then be short."""


@dataclass(frozen=True)
class SessionPage:
    """A page of sessions. `next_cursor` is None at the end; a page may be short, and yet not the last."""

    sessions: list[SessionRecord]
    next_cursor: str | None

    def __iter__(self) -> Iterator[SessionRecord]:
        return iter(self.sessions)

    def __len__(self) -> int:
        return len(self.sessions)


@dataclass(frozen=True)
class Stats:
    """How many sessions a tenant has, by status."""

    active: int
    idle: int
    ended: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.active + self.idle + self.ended


@dataclass(frozen=True)
class Filters:
    """What a listing asks for. User and status have an index; the others are looked at one by one."""

    user_id: str | None = None
    status: Status | None = None
    agent_id: str | None = None
    memory_space_id: str | None = None
    started_after: int | None = None
    started_before: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_index(self) -> bool:
        """Whether the store's indexes alone answer it."""
        others = (self.agent_id, self.memory_space_id, self.started_after, self.started_before)
        return all(other is None for other in others) and not self.metadata

    def match(self, record: SessionRecord) -> bool:
        """Whether a session that the index gave is one of those asked for."""
        started = check_time(record.started_at, "started_at")
        return (
            self.agent_id in (None, record.agent_id)
            and self.memory_space_id in (None, record.memory_space_id)
            and (self.started_after is None or started > self.started_after)
            and (self.started_before is None or started < self.started_before)
            and all(name in record.metadata and record.metadata[name] == value for name, value in self.metadata.items())
        )


def write_cursor(cursor: Cursor | None, order: Order) -> str | None:
    """A place in a listing as text that means nothing to anybody else."""
    if cursor is None:
        return None
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((order[0], *cursor))).rstrip(b"=").decode()


def read_cursor(text: object, order: Order) -> Cursor | None:
    """The place that `write_cursor` wrote.

    Raises:
        InvalidError: `INVALID_CURSOR`: it comes from elsewhere, or from a listing in the other order.
    """
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise ValueError(text)
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        letter, at, id = msgspec.msgpack.decode(raw, type=tuple[Literal["a", "s"], int, str])
        if letter != order[0] or not 0 <= at <= LATEST_MS:
            raise ValueError(letter, at)
        check_id(id, "cursor")
    except (ValueError, msgspec.DecodeError, InvalidError):
        raise InvalidError(
            "CURSOR", "cursor must be the next_cursor of a page of the same listing", field="cursor"
        ) from None
    return Cursor(at, id)
