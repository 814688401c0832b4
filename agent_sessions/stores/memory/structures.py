"""The data structures of the in-memory store. They know nothing of keys, leases or locks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from agent_sessions.stores.base import (
    CollectionChange,
    EntryRange,
    LogChange,
    LogHead,
)


class LogItems:
    """A log: its items, and the sequence number of each.

    Numbers rise by one except where items were popped: `_runs` holds (index, number) of the first item after each
    such gap.
    """

    __slots__ = ("_assigned", "_items", "_runs", "head")

    def __init__(self) -> None:
        self._items: list[bytes] = []
        self._runs: list[tuple[int, int]] = []
        self._assigned = 0
        self.head = LogHead(0, 0)

    def change(self, change: LogChange) -> LogHead:
        """Apply a change and return where the log stands then."""
        if change.clear:
            self._truncate(0)
        elif change.pop:
            self._truncate(max(0, len(self._items) - change.pop))
        if change.append:
            if self._assigned != self.head.last or not self._items:
                self._runs.append((len(self._items), self._assigned + 1))
            self._items += change.append
            self._assigned += len(change.append)
            self.head = LogHead(len(self._items), self._assigned)
        return self.head

    def follows(self, count: int, last: int) -> bool:
        """Whether item number `last` is the `count`-th: then all before it are the same as well."""
        return 0 < count <= len(self._items) and self._number(count - 1) == last

    def since(self, count: int) -> list[bytes]:
        """The items after the first `count`."""
        return self._items[count:]

    def window(self, limit: int | None) -> list[bytes]:
        """The last `limit` items."""
        return self._items[:] if limit is None else self._items[max(0, len(self._items) - limit) :]

    def _truncate(self, count: int) -> None:
        del self._items[count:]
        while self._runs and self._runs[-1][0] >= count:
            self._runs.pop()
        self.head = LogHead(count, self._number(count - 1) if count else 0)

    def _number(self, index: int) -> int:
        start, number = self._runs[bisect_right(self._runs, index, key=lambda run: run[0]) - 1]
        return number + index - start


class Entries:
    """A collection: entries by key, and the keys in order (that of code points, which is that of UTF-8 bytes)."""

    __slots__ = ("_keys", "by_key")

    def __init__(self) -> None:
        self.by_key: dict[str, bytes] = {}
        self._keys: list[str] = []

    def change(self, change: CollectionChange) -> None:
        """Drop prefixes, then put and delete entries."""
        for prefix in change.delete_prefixes:
            low, high = self._prefix_bounds(prefix)
            for key in self._keys[low:high]:
                del self.by_key[key]
            del self._keys[low:high]
        dropped = [key for key, value in change.entries.items() if value is None and key in self.by_key]
        added = [key for key, value in change.entries.items() if value is not None and key not in self.by_key]
        for key in dropped:
            del self.by_key[key]
        self.by_key.update((key, value) for key, value in change.entries.items() if value is not None)
        self._reorder(dropped, added)

    def range(self, wanted: EntryRange) -> list[tuple[str, bytes]]:
        """The entries of a range, in its direction."""
        low, high = self._prefix_bounds(wanted.prefix)
        if wanted.after is not None:
            low = max(low, bisect_right(self._keys, wanted.after))
        if wanted.before is not None:
            high = min(high, bisect_left(self._keys, wanted.before))
        size = max(0, high - low)
        if wanted.limit is not None:
            size = min(size, wanted.limit)
        keys = self._keys[high - size : high][::-1] if wanted.reverse else self._keys[low : low + size]
        return [(key, self.by_key[key]) for key in keys]

    def _prefix_bounds(self, prefix: str) -> tuple[int, int]:
        if not prefix:
            return 0, len(self._keys)
        low = bisect_left(self._keys, prefix)
        return low, bisect_left(self._keys, True, low, key=lambda key: not key.startswith(prefix))

    def _reorder(self, dropped: list[str], added: list[str]) -> None:
        if (len(dropped) + len(added)) * 20 > len(self._keys):
            self._keys = sorted(self.by_key)
            return
        for key in dropped:
            del self._keys[bisect_left(self._keys, key)]
        for key in added:
            insort(self._keys, key)


class Places:
    """Ids in the order of a time of theirs.

    The clock rises, so a new place goes to the end; the old one stays where it is, is passed over from then on, and
    goes when such places outnumber the rest.
    """

    __slots__ = ("_order", "_stamps")

    def __init__(self) -> None:
        self._stamps: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._stamps)

    def put(self, at: int, id: str) -> None:
        """Enter an id, or move it."""
        if self._stamps.get(id) == at:
            return
        self._stamps[id] = at
        place = (at, id)
        if not self._order or self._order[-1] < place:
            self._order.append(place)
        elif self._order[index := bisect_left(self._order, place)] != place:
            self._order.insert(index, place)
        if len(self._order) > 2 * len(self._stamps) + 64:
            self._order = [place for place in self._order if self._stamps.get(place[1]) == place[0]]

    def remove(self, id: str) -> None:
        """Take an id out."""
        self._stamps.pop(id, None)

    def newest_first(self, before: tuple[int, str] | None) -> Iterator[tuple[int, str]]:
        """The places, the latest first, after the one where a page ended."""
        order = self._order
        for index in range((len(order) if before is None else bisect_left(order, before)) - 1, -1, -1):
            at, id = order[index]
            if self._stamps.get(id) == at:
                yield at, id
