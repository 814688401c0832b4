"""Reading what a record names: values, fields, logs, entries and ranges."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field

from agent_sessions.stores.base import Discreet, EntryRange, Known, LogHead, LogRead, LogWanted, Part, Wanted
from agent_sessions.stores.dynamodb.layout.keys import Names, Span, name_in, part_in, revision_in
from agent_sessions.stores.dynamodb.layout.parts import Collection, Log, Namespace, Parts, decode_parts
from agent_sessions.stores.dynamodb.layout.payloads import Torn, payloads
from agent_sessions.stores.dynamodb.layout.records import Record
from agent_sessions.stores.dynamodb.service.requests import Item, Requests, gather

_MOST_FRAMES_ASKED = 500
"""How many frames are read at a time at most where only the end of a log is wanted; 1 MB is always the limit."""

_items_decoder = msgspec.msgpack.Decoder(list[bytes])
_fields_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


class Contents(Discreet, Struct):
    """What was read."""

    values: dict[str, dict[str, bytes]] = field(default_factory=dict)
    fields: dict[str, bytes] | None = None
    logs: list[LogRead] = field(default_factory=list)
    entries: list[bytes | None] = field(default_factory=list)
    ranges: list[list[tuple[str, bytes]]] = field(default_factory=list)
    in_place: bool = False
    """Whether some of it lies in items that the next commit may change or remove: then the record tells, read once
    more, whether it is all of one moment. Frames of logs are never changed, and tell by themselves what is missing."""


class Frame(NamedTuple):
    """What one commit appended to a log."""

    item: Item
    at: int
    """The place of its first item in the log."""
    number: int
    """The sequence number of its first item."""
    size: int

    @property
    def revision(self) -> int:
        """The commit that wrote it."""
        return revision_in(self.item["k"]["B"])

    @classmethod
    def of(cls, item: Item) -> Frame:
        """The frame in an item."""
        return cls(item, *(int(item[name]["N"]) for name in ("i", "q", "n")))


class Reader:
    """Reads the items of one life as its record names them.

    Every method raises `Torn` if the items are not those of the record: it was changed meanwhile, or they are lost.
    """

    def __init__(self, requests: Requests, partition: str, record: Record) -> None:
        self._requests = requests
        self._partition = partition
        self._record = record

    @property
    def _names(self) -> Names:
        return self._record.names

    async def read(self, wanted: Wanted, known: Known | None) -> Contents:
        """Read all that is wanted and not known."""
        record = self._record
        since = known.version.revision if known is not None and record.commits.has(known.version) else 0
        with_fields = known is None or known.record_tag != record.record_tag
        contents = Contents(fields={} if with_fields else None)
        moved = self._moved(since) if wanted.values else []
        asked = with_fields and record.parts.has_fields
        work = [partial(self._values_and_fields, contents, moved, since, asked)] if moved or asked else []
        logs = [partial(self._log, log, since) for log in wanted.logs]
        ranges = [partial(self._range, asked) for asked in wanted.ranges]
        entries = [partial(self._entries, wanted.entries)] if wanted.entries else []
        done: list[Any] = await gather([*work, *logs, *ranges, *entries])
        after = iter(done[len(work) :])
        contents.logs = [next(after) for _ in logs]
        contents.ranges = [next(after) for _ in ranges]
        contents.entries = next(after) if entries else []
        contents.in_place = bool(moved or wanted.entries or wanted.ranges)
        return contents

    async def directory(self) -> Parts:
        """The parts as the directory has them."""
        item = await self._requests.get(self._partition, self._names.directory(self._record.changes.directory))
        if item is None:
            raise Torn
        (data,) = await payloads(self._requests, self._partition, self._names, [item])
        return decode_parts(data)

    async def fields(self) -> dict[str, bytes]:
        """The record's fields."""
        if not self._record.parts.has_fields:
            return {}
        item = await self._requests.get(self._partition, self._names.fields)
        return await self.fields_in(item)

    async def fields_in(self, item: Item | None) -> dict[str, bytes]:
        """The record's fields, from the item that should hold them."""
        if item is None or item["m"]["B"] != self._record.fields_tag:
            raise Torn
        (data,) = await payloads(self._requests, self._partition, self._names, [item])
        return _fields_decoder.decode(data)

    # ------------------------------------------------------------------------------------------------- values

    def _moved(self, since: int) -> list[int]:
        """The namespaces of which a value changed since."""
        namespaces = self._record.parts.namespaces
        return [number for number, namespace in enumerate(namespaces) if namespace.revision > since]

    async def _values_and_fields(self, contents: Contents, moved: list[int], since: int, with_fields: bool) -> None:
        names, namespaces = self._names, self._record.parts.namespaces
        spans: list[Span]
        if moved and not since:
            spans = [names.fields_and_values if with_fields else names.all_values]
        else:
            spans = [(names.fields, names.fields)] if with_fields else []
            spans += [names.values(number) for number in moved]
        asked = [partial(self._requests.query_all, self._partition, span) for span in spans]
        items = [item for found in await gather(asked) for item in found]
        if with_fields:
            found = items.pop(0) if items and items[0]["k"]["B"] == names.fields else None
            contents.fields = await self.fields_in(found)
        read = await self._payloads_in_place(items)
        if since:
            contents.values = {namespaces[number].name: {} for number in moved}
        for item, data in zip(items, read, strict=True):
            name = item["k"]["B"]
            contents.values.setdefault(namespaces[part_in(name)].name, {})[name_in(name)] = data

    async def _payloads_in_place(self, items: list[Item]) -> list[bytes]:
        if any(int(item["r"]["N"]) > self._record.commits.revision for item in items):
            raise Torn
        return await payloads(self._requests, self._partition, self._names, items)

    # ------------------------------------------------------------------------------------------------- entries

    async def _entries(self, wanted: Sequence[tuple[Part, str]]) -> list[bytes | None]:
        numbers = {part: self._filled(part) for part, _ in wanted}
        names = [
            None if (number := numbers[part]) is None else (self._partition, self._names.entry(number, key))
            for part, key in wanted
        ]
        found = await self._requests.get_all([name for name in names if name is not None])
        read = dict(zip(found, await self._payloads_in_place(list(found.values())), strict=True))
        return [read.get(name) for name in names]

    async def _range(self, wanted: EntryRange) -> list[tuple[str, bytes]]:
        number = self._filled(wanted.part)
        if number is None or wanted.limit == 0:
            return []
        span = self._names.entries(number, wanted.prefix, wanted.after, wanted.before)
        limit = None if wanted.limit is None else wanted.limit + 1  # one may be `before` itself
        items: list[Item] = []
        async with aclosing(self._requests.query(self._partition, span, reverse=wanted.reverse, limit=limit)) as pages:
            async for page in pages:
                items += [item for item in page if name_in(item["k"]["B"]) != wanted.before]
                if wanted.limit is not None and len(items) >= wanted.limit:
                    break
        items = items[: wanted.limit]
        read = await self._payloads_in_place(items)
        return [(name_in(item["k"]["B"]), data) for item, data in zip(items, read, strict=True)]

    def _filled(self, part: Part) -> int | None:
        """The number of a collection that has entries."""
        number = self._record.parts.collection(part)
        return number if number is not None and self._record.parts.collections[number].revision else None

    # ------------------------------------------------------------------------------------------------- logs

    async def _log(self, wanted: LogWanted, since: int) -> LogRead:
        number = self._record.parts.log(wanted.part)
        if number is None:
            return LogRead(LogHead(0, 0), [], False)
        log = self._record.parts.logs[number]
        if since and 0 < wanted.count <= log.count:
            if (wanted.count, wanted.last) == log.head:
                return LogRead(log.head, [], True)
            tail = await self._tail(number, log, wanted, since)
            if tail is not None:
                return LogRead(log.head, tail, True)
        first = 0 if wanted.limit is None else max(0, log.count - wanted.limit)
        return LogRead(log.head, await self._items(await self._live(number, log, first), first, log.count), False)

    async def _tail(self, number: int, log: Log, wanted: LogWanted, since: int) -> list[bytes] | None:
        """What follows the caller's prefix; None if it is not the prefix of the log any more."""
        if since >= log.cut_at:
            with suppress(Torn):
                frames = await self._live(number, log, wanted.count, after=since)
                if frames and frames[-1].at == wanted.count:
                    return await self._items(frames, wanted.count, log.count)
        frames = await self._live(number, log, wanted.count - 1)
        oldest = frames[-1]
        if oldest.number + wanted.count - 1 - oldest.at != wanted.last:
            return None
        return await self._items(frames, wanted.count, log.count)

    async def frame_at(self, number: int, index: int) -> Frame:
        """The frame that holds the item at a place of a log."""
        return (await self._live(number, self._record.parts.logs[number], index))[-1]

    async def _live(self, number: int, log: Log, first: int, *, after: int = 0) -> list[Frame]:
        """The frames that hold the items from the place `first` on, the newest first.

        Popping leaves frames, or their ends, behind: what of a frame lies at or above the place where a newer one
        begins, is dead.
        """
        upto, live = log.count, list[Frame]()
        if upto <= first:
            return live
        async with aclosing(self._frames(number, log, upto - first, after=after)) as found:
            async for frame in found:
                if frame.at >= upto:
                    continue
                if frame.at + frame.size < upto:
                    raise Torn
                live.append(frame._replace(size=upto - frame.at))
                upto = frame.at
                if upto <= first:
                    return live
        raise Torn

    async def _frames(self, number: int, log: Log, most: int, *, after: int = 0) -> AsyncGenerator[Frame, None]:
        span = self._names.frames(number, max(log.first_frame, after + 1), self._record.commits.revision)
        limit = most if most <= _MOST_FRAMES_ASKED else None
        async with aclosing(self._requests.query(self._partition, span, reverse=True, limit=limit)) as pages:
            async for page in pages:
                for item in page:
                    yield Frame.of(item)

    async def _items(self, frames: list[Frame], first: int, stop: int) -> list[bytes]:
        """The items from a place to another, out of live frames."""
        oldest_first = frames[::-1]
        read = await payloads(self._requests, self._partition, self._names, [frame.item for frame in oldest_first])
        items: list[bytes] = []
        for frame, data in zip(oldest_first, read, strict=True):
            items += _items_decoder.decode(data)[: frame.size]
        start = oldest_first[0].at if oldest_first else first
        return items[first - start : stop - start]


def is_of_one_moment(record: Record, current: Record, wanted: Wanted) -> bool:
    """Whether what was read in its place is as the record names it, since the current one has none of it changed.

    What has changed beside it, such as the end of a log, does not matter.
    """
    if (current.names, current.changes.directory) != (record.names, record.changes.directory):
        return False
    parts = current.changes.onto(record.directory or Parts())
    if wanted.values and _changed(record.parts.namespaces, parts.namespaces):
        return False
    read = {*(part for part, _ in wanted.entries), *(entries.part for entries in wanted.ranges)}
    numbers = {number for part in read if (number := record.parts.collection(part)) is not None}
    was, is_now = ([of.collections[number] for number in numbers] for of in (record.parts, parts))
    return not _changed(was, is_now)


def _changed(parts: Sequence[Namespace | Collection], current: Sequence[Namespace | Collection]) -> bool:
    """Whether any of these is of another commit by now. New ones, which come after them, are not asked for."""
    return any(one.revision != other.revision for one, other in zip(parts, current, strict=False))
