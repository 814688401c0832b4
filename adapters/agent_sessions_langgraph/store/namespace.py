"""The items of one namespace, in a store.

A namespace is one key with five collections:

| collection | entries |
|---|---|
| `items` | an item: its value, stamp and times |
| `vectors` | what an item is found by, if it is indexed, and its stamp. None is without its item |
| `newest` | by stamp: which item. The order of listings |
| `refreshed` | of an item that was read since it was put: its stamp, and when it expires now |
| `ends` | by the time that an item expires, and its stamp: which item. What is to be removed |

Puts are blind: those of many processes at once don't hinder one another, and each takes effect whole. So one that was
overtaken may leave an entry behind, in any collection but `items`. It names a stamp that its item has not, by which
readers know it, and is removed or written over in time.

The record's field `listed` says that the directory has the namespace. It is set, at the version at which it was found
missing, after the directory was written. It is taken away, at the version at which the namespace was found empty,
before the directory is; and the directory is changed then only if nothing was entered meanwhile. So no namespace with
items is missing in the directory, but for the moment until a put that was overtaken has seen it and made up for it, or,
if its process ended in that moment, until an item is read or put.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from agent_sessions import codec
from agent_sessions.errors import SessionConflictError, SessionError
from agent_sessions.stores.base import ABSENT, CollectionChange, EntryRange, Opened, Part, Row, Version

from .access import Access
from .changes import ENDS, ITEMS, NEWEST, REFRESHED, VECTORS, Changes, stamp_of_end
from .directory import Directory
from .items import NewItem, StoredItem, Vectors, time_of
from .names import Namespace, namespace_key

_LISTED = "listed"
_YES = codec.encode(True)

_PAGE = 200
_ENDS_PER_PUT = 16
_ENDS_PER_CLEANING = 500
_VISITED = 2
_LEFT_BEHIND_MS = 60_000
"""What is younger may be the trace of a put that took place between two reads."""
_EMPTY_KEPT_MS = 3_600_000
"""How long the key of a namespace without items stays."""


class Newest(NamedTuple):
    """The beginning of a namespace's listing, the newest first."""

    places: list[tuple[str, str]]
    """Stamps, and the entries of the items that have them, or had."""
    is_all: bool


class StoredNamespace:
    """One namespace of a tenant."""

    def __init__(self, access: Access, namespace: Namespace) -> None:
        self.namespace = namespace
        self._access = access
        self._key = namespace_key(access.tenant, namespace)
        self._directory = Directory(access)
        self._now, self._version = 0, ABSENT

    # ------------------------------------------------------------------------------------------------ reading

    async def get(self, entries: Iterable[str]) -> dict[str, StoredItem]:
        """Those of the items that there are, by their entries."""
        read = await self._read(entries)
        if read.items and not read.is_listed:
            await self._list()  # the process that put them ended before it could
        return read.live()

    async def newest(self, limit: int) -> Newest:
        """The beginning of the listing."""
        found = await self._range(EntryRange(NEWEST, reverse=True, limit=limit))
        return Newest([(stamp, entry.decode()) for stamp, entry in found], is_all=len(found) < limit)

    async def at(self, places: Sequence[tuple[str, str]]) -> dict[str, StoredItem]:
        """The items at places of the listing, by their entries."""
        read = await self._read(entry for _, entry in places)
        changes = Changes()
        for stamp, entry in places:
            item = read.items.get(entry)
            if (item is None or item.stamp != stamp) and time_of(stamp) < read.now - _LEFT_BEHIND_MS:
                changes.forget_place(stamp)
        if changes.collections:
            with suppress(SessionConflictError):  # the next search sees to it
                await self._commit_at(read.version, changes.collections)
        return read.live()

    async def all(self) -> dict[str, StoredItem]:
        """Every item, by its entry."""
        items: dict[str, StoredItem] = {}
        async for (page,) in self._pages(ITEMS):
            items |= await self._live(page)
        return items

    async def all_with_vectors(self) -> dict[str, tuple[StoredItem, Vectors | None]]:
        """Every item, by its entry, and what it is found by."""
        items: dict[str, StoredItem] = {}
        vectors: dict[str, Vectors] = {}
        async for page, of_page in self._pages(ITEMS, VECTORS):
            items |= await self._live(page)
            vectors |= (_vectors(data) for _, data in of_page)
        return {entry: (item, vectors.get(item.stamp)) for entry, item in items.items()}

    async def has_items(self) -> bool:
        """Whether there is any item. A namespace without is cleaned up."""
        first = await self._range(EntryRange(ITEMS, limit=1))
        if any(StoredItem.decoded(data).is_live(self._now) for _, data in first):
            return True
        if first and (await self.get(entry for entry, _ in first) or await self.all()):
            return True
        await self.clean_up()
        return False

    # ------------------------------------------------------------------------------------------------ writing

    async def put(self, items: Mapping[str, NewItem | None]) -> None:
        """Put items, by their entries, and delete those that are None, in one step."""
        has_new = any(new is not None for new in items.values())
        while True:
            read = await self._read(items, EntryRange(ENDS, limit=_ENDS_PER_PUT))
            if not has_new and not read.items:
                return
            if not has_new or read.is_listed:
                done = await self._access.commit(self._key, _put(items, read).collections)
                if has_new and done.previous != read.version:
                    await self._list()  # another commit came in between, and may have found the namespace empty
                break
            await self._directory.enter(self.namespace)
            with suppress(SessionConflictError):  # somebody else got on: look again
                await self._commit_at(read.version, _put(items, read).collections, {_LISTED: _YES})
                await self._visit_others()
                break
        await self._remove_ended(_due(read.ends, read.now))
        if not has_new and (await self.newest(1)).is_all:
            await self.clean_up()

    async def refresh(self, items: Mapping[str, StoredItem]) -> None:
        """Let items that were read just now live on for their time."""
        changes = Changes()
        for entry, item in items.items():
            end = item.end_after_refresh(self._now)
            if end is not None:
                changes.refresh(entry, item, end)
        if changes.collections:
            known = self._version
            done = await self._access.commit(self._key, changes.collections)
            if done.previous != known:
                await self.clean_up()  # all may have been deleted meanwhile

    async def clean_up(self) -> None:
        """Remove items that are past their time, and the namespace from the directory if there is none then."""
        opened = await self._open((), [EntryRange(ENDS, limit=_ENDS_PER_CLEANING)])
        due = _due(opened.ranges[0], opened.now)
        if not due and ITEMS in opened.collections:
            return
        await self._remove_ended(due)
        unchanged_since = await self._directory.version()
        opened = await self._access.open(self._key)
        if ITEMS in opened.collections:
            return
        rest = {part: CollectionChange(delete_prefixes=[""]) for part in opened.collections}
        with suppress(SessionConflictError):  # it is in use again, or the next one cleans up
            await self._commit_at(opened.version, rest, {_LISTED: None}, ttl_ms=_EMPTY_KEPT_MS)
            await self._directory.take_out(self.namespace, unchanged_since)

    async def _list(self) -> None:
        """See that the directory has this namespace."""
        while True:
            opened = await self._access.open(self._key)
            if opened.row is None or _is_listed(opened.row):
                return
            await self._directory.enter(self.namespace)
            with suppress(SessionConflictError):
                await self._commit_at(opened.version, {}, {_LISTED: _YES})
                return

    async def _visit_others(self) -> None:
        """Clean up somewhere: as namespaces come, those go whose items expire and that nobody else looks after."""
        with suppress(SessionError):  # what was put is stored
            for namespace in await self._directory.some(_VISITED):
                await StoredNamespace(self._access, namespace).clean_up()

    async def _remove_ended(self, due: Sequence[tuple[str, str]]) -> None:
        """Remove the items that end there, if they do."""
        if not due:
            return
        read = await self._read(entry for _, entry in due)
        changes = Changes()
        for end, entry in due:
            item = read.items.get(entry)
            changes.forget_end(end)
            if item is None:
                changes.forget_refresh(entry)
            elif item.stamp == stamp_of_end(end) and not item.is_live(read.now):
                changes.remove(entry, item)
        with suppress(SessionConflictError):  # the next put sees to it
            await self._commit_at(read.version, changes.collections)

    async def _commit_at(
        self,
        version: Version,
        collections: Mapping[Part, CollectionChange],
        fields: Mapping[str, bytes | None] | None = None,
        ttl_ms: int | None = None,
    ) -> None:
        await self._access.commit(self._key, collections, expected=version, fields=fields, ttl_ms=ttl_ms)

    # ------------------------------------------------------------------------------------------------ inside

    async def _read(self, entries: Iterable[str], *ranges: EntryRange) -> _Read:
        names = list(dict.fromkeys(entries))
        wanted = [(part, name) for part in (ITEMS, REFRESHED) for name in names]
        opened = await self._open(wanted, ranges)
        pairs = zip(names, opened.entries[: len(names)], opened.entries[len(names) :], strict=True)
        items = {name: StoredItem.decoded(item, refreshed) for name, item, refreshed in pairs if item is not None}
        ends = [end for found in opened.ranges for end in found]
        return _Read(opened.now, opened.version, _is_listed(opened.row), items, ends)

    async def _range(self, wanted: EntryRange) -> list[tuple[str, bytes]]:
        return (await self._open((), [wanted])).ranges[0]

    async def _pages(self, *parts: Part) -> AsyncIterator[list[list[tuple[str, bytes]]]]:
        """Entries of the first collection, and of the others those of the same items; each page is of one moment."""
        after = None
        while True:
            opened = await self._open((), [EntryRange(part, after=after, limit=_PAGE) for part in parts])
            yield opened.ranges
            if len(opened.ranges[0]) < _PAGE:
                return
            after = opened.ranges[0][-1][0]

    async def _live(self, page: list[tuple[str, bytes]]) -> dict[str, StoredItem]:
        items = {entry: StoredItem.decoded(data) for entry, data in page}
        ended = {entry for entry, item in items.items() if not item.is_live(self._now)}
        refreshed = await self.get(ended) if ended else {}
        return {entry: item for entry, item in items.items() if entry not in ended} | refreshed

    async def _open(self, entries: Sequence[tuple[Part, str]], ranges: Sequence[EntryRange]) -> Opened:
        opened = await self._access.open(self._key, entries=entries, ranges=ranges)
        self._now, self._version = opened.now, opened.version
        return opened


class _Read(NamedTuple):
    """Items at one moment, and the next ends of some."""

    now: int
    version: Version
    is_listed: bool
    items: dict[str, StoredItem]
    """By their entries; also those that are past their time."""
    ends: list[tuple[str, bytes]]

    def live(self) -> dict[str, StoredItem]:
        return {entry: item for entry, item in self.items.items() if item.is_live(self.now)}


def _put(items: Mapping[str, NewItem | None], read: _Read) -> Changes:
    changes = Changes()
    for entry, new in items.items():
        old = read.items.get(entry)
        if old is not None:
            changes.remove(entry, old)
        if new is not None:
            is_update = old is not None and old.is_live(read.now)
            changes.put(entry, new, old.created_at if old is not None and is_update else read.now, read.now)
    return changes


def _due(ends: Sequence[tuple[str, bytes]], now: int) -> list[tuple[str, str]]:
    return [(end, entry.decode()) for end, entry in ends if time_of(end) <= now]


def _vectors(entry: bytes) -> tuple[str, Vectors]:
    stamp, dims, data = codec.decode(entry)
    return stamp, Vectors(dims, data)


def _is_listed(row: Row | None) -> bool:
    return row is not None and _LISTED in (row.fields or {})
