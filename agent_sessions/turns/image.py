"""What a process knows of a key at one version, and how it learns what changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field, structs

from ..stores.base import (
    ABSENT,
    Discreet,
    EntryRange,
    Known,
    LogHead,
    LogWanted,
    Opened,
    Part,
    Row,
    Version,
    Wanted,
)
from ..stores.whole import commits_seen
from .logs import EMPTY_WINDOW, LogWindow

MOST_ENTRIES = 512
"""How many collection entries an image keeps at most, the newest."""


class Image(Discreet, Struct, frozen=True):
    """A key at one version: its record, all its values, and those logs and entries that were asked for.

    Images are never changed; `learned` makes a new one that shares what stayed the same.
    """

    version: Version = ABSENT
    now: int = 0
    """When it was read, or stored."""
    row: Row | None = None
    values: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    log_heads: Mapping[Part, LogHead] = field(default_factory=dict)
    collections: Mapping[Part, int] = field(default_factory=dict)
    logs: Mapping[Part, LogWindow] = field(default_factory=dict)
    entries: Mapping[Part, Mapping[str, bytes | None]] = field(default_factory=dict)

    @property
    def revision(self) -> int:
        """How many commits it has seen, those of what it is a copy of included."""
        return self.version.revision if self.row is None else commits_seen(self.version.revision, self.row)

    @property
    def known(self) -> Known | None:
        """What to tell the store, so that it answers with what is new."""
        return None if self.row is None else Known(self.version, self.row.record_tag)

    @property
    def filled_parts(self) -> set[Part]:
        """Every log and collection that holds anything."""
        return {*(part for part, head in self.log_heads.items() if head.count), *self.collections}

    @property
    def belongs_to(self) -> str | None:
        """The user, if it is known to be somebody's."""
        return None if self.row is None else self.row.belongs_to

    @property
    def fields(self) -> Mapping[str, bytes]:
        """The record's fields."""
        return {} if self.row is None else self.row.fields or {}

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        values = sum(len(data) + 128 for names in self.values.values() for data in names.values())
        entries = sum(128 * len(keyed) + sum(map(len, filter(None, keyed.values()))) for keyed in self.entries.values())
        fields = sum(len(data) + 128 for data in self.fields.values())
        return 1024 + values + entries + fields + sum(window.buffer.size for window in self.logs.values())

    def count(self, part: Part) -> int:
        """How many items a log has."""
        head = self.log_heads.get(part)
        return 0 if head is None else head.count

    def window(self, part: Part) -> LogWindow:
        """What is held of a log's items; none of a log that nobody asked for."""
        window = self.logs.get(part)
        if window is not None:
            return window
        head = self.log_heads.get(part)
        return EMPTY_WINDOW if head is None else LogWindow.of(head, [])

    def wanted(
        self,
        logs: Mapping[Part, int | None],
        *,
        values: bool = True,
        entries: Iterable[tuple[Part, str]] = (),
        ranges: Iterable[EntryRange] = (),
    ) -> Wanted:
        """What to ask the store for: these logs, and what became of the ones held here already."""
        asked = [self._log_wanted(part, limit) for part, limit in logs.items()]
        asked += [self._log_wanted(part, self._window_limit(part)) for part in self.logs if part not in logs]
        return Wanted(values=values, logs=asked, entries=list(entries), ranges=list(ranges))

    def learned(self, opened: Opened, wanted: Wanted) -> Image:
        """The image after the answer to `wanted`."""
        if opened.row is None:
            return NOTHING
        kept = self if opened.continues else NOTHING
        row = opened.row
        if row.fields is None:  # the tag alone says so: true also if the versions in between are forgotten
            row = structs.replace(row, fields=dict(self.fields))
        return Image(
            version=opened.version,
            now=opened.now,
            row=row,
            values=_moved(kept.values, opened.values) if wanted.values else kept.values,
            log_heads=opened.log_heads,
            collections=opened.collections,
            logs=self._logs_learned(opened, wanted),
            entries=_entries_learned(kept, opened, wanted),
        )

    def _log_wanted(self, part: Part, limit: int | None) -> LogWanted:
        window = self.logs.get(part)
        if window is None or not window.covers(limit):
            return LogWanted(part, limit)
        return LogWanted(part, limit, window.head.count, window.head.last)

    def _window_limit(self, part: Part) -> int | None:
        window = self.logs[part]
        return None if window.is_whole else window.held

    def _logs_learned(self, opened: Opened, wanted: Wanted) -> dict[Part, LogWindow]:
        logs: dict[Part, LogWindow] = {}
        for asked, read in zip(wanted.logs, opened.logs, strict=True):
            held = self.logs.get(asked.part)
            if read.continues and held is not None:
                logs[asked.part] = held.continued(read.head, read.items)
            else:
                logs[asked.part] = LogWindow.of(read.head, read.items)
        return logs


NOTHING = Image()


def _moved(
    held: Mapping[str, Mapping[str, bytes]], moved: Mapping[str, Mapping[str, bytes]]
) -> Mapping[str, Mapping[str, bytes]]:
    if not moved:
        return held
    return {namespace: names for namespace, names in {**held, **moved}.items() if names}


def _entries_learned(kept: Image, opened: Opened, wanted: Wanted) -> Mapping[Part, Mapping[str, bytes | None]]:
    entries: dict[Part, dict[str, bytes | None]] = {
        part: dict(keyed)
        for part, keyed in kept.entries.items()
        if kept.collections.get(part) == opened.collections.get(part)
    }
    for (part, key), data in zip(wanted.entries, opened.entries, strict=True):
        entries.setdefault(part, {})[key] = data
    for asked, found in zip(wanted.ranges, opened.ranges, strict=True):
        entries.setdefault(asked.part, {}).update(found)
    return bounded(entries)


def bounded(entries: dict[Part, dict[str, bytes | None]]) -> dict[Part, dict[str, bytes | None]]:
    """Keep the newest entries of each collection only."""
    for keyed in entries.values():
        for key in list(keyed)[: max(0, len(keyed) - MOST_ENTRIES)]:
            del keyed[key]
    return entries
