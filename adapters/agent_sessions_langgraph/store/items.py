"""An item as it is stored."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any, NamedTuple

from langgraph.store.base import Item, SearchItem

from agent_sessions import codec
from agent_sessions.errors import FormatTooNewError

from .names import Namespace

FORMAT = 1
"""The layout of an item's entry, which begins with it."""

_SMALLEST_REFRESH_MS = 1_000
_TIME_DIGITS = 12


class Vectors(NamedTuple):
    """What an item is found by: vectors of length 1, one after the other, as 32 bit floats in little-endian order."""

    dims: int
    data: bytes


class NewItem(NamedTuple):
    """What is to be put."""

    key: str
    number: int
    """Its place among all that this process puts."""
    data: bytes
    """The value, encoded."""
    ttl_ms: int | None
    vectors: Vectors | None
    """None: it is not indexed."""


class StoredItem(NamedTuple):
    """What is stored: the value, and what else there is to know of it. Times are the store's, in milliseconds."""

    key: str
    stamp: str
    """Names this version of the item. Stamps rise with the time of the put."""
    created_at: int
    ttl_ms: int | None
    expires_at: int | None
    data: bytes

    @classmethod
    def decoded(cls, entry: bytes, refreshed: bytes | None = None) -> StoredItem:
        """From its entry, and that of its last refresh, if there is one.

        Raises:
            FormatTooNewError: It was written by a newer version.
        """
        layout, *fields = codec.decode(entry)
        if layout != FORMAT:
            raise FormatTooNewError("an item was written by a newer version of agent-sessions: upgrade this process")
        item = cls(*fields)
        if refreshed is not None:
            stamp, expires_at = codec.decode(refreshed)
            if stamp == item.stamp:  # else it was put anew since
                return item._replace(expires_at=expires_at)
        return item

    def encoded(self) -> bytes:
        """Its entry."""
        return codec.encode([FORMAT, *self])

    @property
    def value(self) -> dict[str, Any]:
        """A new copy of its value."""
        value: dict[str, Any] = codec.decode(self.data)
        return value

    def is_live(self, now: int) -> bool:
        """Whether it is not past its time."""
        return self.expires_at is None or now < self.expires_at

    def end_after_refresh(self, now: int) -> int | None:
        """When it expires if it is refreshed now; None if that is no later, or hardly."""
        if self.ttl_ms is None or self.expires_at is None:
            return None
        end = now + self.ttl_ms
        return end if end - self.expires_at > min(_SMALLEST_REFRESH_MS, self.ttl_ms // 60) else None

    def as_item(self, namespace: Namespace) -> Item:
        """As `get` answers it."""
        created, updated = _moment(self.created_at), _moment(time_of(self.stamp))
        return Item(value=self.value, key=self.key, namespace=namespace, created_at=created, updated_at=updated)

    def as_search_item(self, namespace: Namespace, score: float | None) -> SearchItem:
        """As `search` answers it."""
        created, updated = _moment(self.created_at), _moment(time_of(self.stamp))
        return SearchItem(namespace, self.key, self.value, created, updated, score)


def new_stamp(now: int, number: int) -> str:
    """A stamp that nothing else has. Within a millisecond, those of one process are in the order of their numbers."""
    return f"{in_order(now)}{number & 0xFFFFFFFF:08x}{secrets.token_hex(4)}"


def in_order(time: int) -> str:
    """A time as text, whose order is that of time."""
    return f"{time:0{_TIME_DIGITS}x}"


def time_of(text: str) -> int:
    """The time that a text begins with."""
    return int(text[:_TIME_DIGITS], 16)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
