"""What a put, a refresh or a cleaning changes in the collections of a namespace."""

from __future__ import annotations

from collections import defaultdict

from agent_sessions import codec
from agent_sessions.stores.base import CollectionChange, Part

from .items import NewItem, StoredItem, in_order, new_stamp

ITEMS = Part("langgraph", "items")
VECTORS = Part("langgraph", "vectors")
NEWEST = Part("langgraph", "newest")
REFRESHED = Part("langgraph", "refreshed")
ENDS = Part("langgraph", "ends")


class Changes:
    """Changes of entries that belong together, for one commit."""

    def __init__(self) -> None:
        self.collections: defaultdict[Part, CollectionChange] = defaultdict(CollectionChange)

    def remove(self, entry: str, item: StoredItem) -> None:
        """Remove an item."""
        self._set(ITEMS, entry, None)
        self._set(VECTORS, entry, None)
        self._set(NEWEST, item.stamp, None)
        if item.expires_at is not None:
            self._set(REFRESHED, entry, None)
            self._set(ENDS, end_entry(item.expires_at, item.stamp), None)

    def put(self, entry: str, new: NewItem, created_at: int, now: int) -> None:
        """Put an item."""
        stamp = new_stamp(now, new.number)
        expires_at = None if new.ttl_ms is None else now + new.ttl_ms
        item = StoredItem(new.key, stamp, created_at, new.ttl_ms, expires_at, new.data)
        self._set(ITEMS, entry, item.encoded())
        self._set(NEWEST, stamp, entry.encode())
        if new.vectors is not None:
            self._set(VECTORS, entry, codec.encode([stamp, *new.vectors]))
        if expires_at is not None:
            self._set(ENDS, end_entry(expires_at, stamp), entry.encode())

    def refresh(self, entry: str, item: StoredItem, expires_at: int) -> None:
        """Let an item expire later."""
        assert item.expires_at is not None
        self._set(REFRESHED, entry, codec.encode([item.stamp, expires_at]))
        self._set(ENDS, end_entry(item.expires_at, item.stamp), None)
        self._set(ENDS, end_entry(expires_at, item.stamp), entry.encode())

    def forget_end(self, end: str) -> None:
        """Remove the end of an item that does not end then."""
        self._set(ENDS, end, None)

    def forget_refresh(self, entry: str) -> None:
        """Remove the refresh of an item that is gone."""
        self._set(REFRESHED, entry, None)

    def forget_place(self, stamp: str) -> None:
        """Remove the place in the listing of an item that is gone, or has another."""
        self._set(NEWEST, stamp, None)

    def _set(self, part: Part, entry: str, data: bytes | None) -> None:
        self.collections[part].entries[entry] = data


def end_entry(expires_at: int, stamp: str) -> str:
    """The entry in `ENDS` of an item that expires then."""
    return in_order(expires_at) + stamp


def stamp_of_end(end: str) -> str:
    """Whose end it is."""
    return end[len(in_order(0)) :]
