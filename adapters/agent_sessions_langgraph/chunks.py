"""Chunks of lists, and those of them that this process has seen of late."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol

from agent_sessions.stores.base import Key
from agent_sessions.sweeping import MOST_SECONDS, SWEEP_SECONDS, sweep_regularly

from .prints import Prints, Templates, are_prints_of, prints_of

Pair = tuple[str, bytes]
"""What a serializer makes of a value: the name of its format, and bytes."""

CACHE_BYTES = 64 * 2**20
"""How much of the process's memory chunks may take."""
_MOST_LATEST = 4096


class Segment(NamedTuple):
    """Items of a chunk, as a stored list names them."""

    chunk: bytes
    start: int
    stop: int


Segments = tuple[Segment, ...]


class Chunk:
    """Some items of a list: encoded, and, once somebody has asked, their prints and templates."""

    def __init__(self, chunk_id: bytes, pair: Pair, prints: Prints | None = None) -> None:
        self.id = chunk_id
        self.pair = pair
        self._prints = prints
        self._templates: Templates | None = None
        self._shared: list[Any] | None = None
        self._is_known = False

    @property
    def level(self) -> int:
        """How often its items have been written again; the first byte of its id."""
        return self.id[0]

    @property
    def size(self) -> int:
        """Its encoded size in bytes."""
        return len(self.pair[1])

    def items(self, serde: SerializerProtocol, start: int, stop: int, *, shared: bool) -> list[Any]:
        """These items: new objects, or, if `shared`, those that others have got, and that are as they were.

        Sharing is for turns, of which a session has one at a time. What somebody has changed is made anew.
        """
        if self._templates is None:
            items = self._decoded(serde)
        elif not shared:
            return self._templates.copies(start, stop)
        elif self._shared is None or not self._is_intact(serde):
            items = self._templates.copies(0, len(self._templates.prints))
        else:
            return self._shared[start:stop]
        if shared and self._templates is not None:
            self._shared = items
        return items[start:stop]

    def _decoded(self, serde: SerializerProtocol) -> list[Any]:
        items: list[Any] = serde.loads_typed(self.pair)
        if not self._is_known:
            # What was put may differ from what comes back, once; the prints are of what was put.
            prints = prints_of(items, serde)
            if self._prints is None or self._prints == prints:
                self._prints = prints
            self._templates = Templates.of(items, prints)
            self._is_known = True
        return items

    def _is_intact(self, serde: SerializerProtocol) -> bool:
        return self._templates is not None and are_prints_of(self._templates.prints, self._shared or [], serde)

    def prints(self, serde: SerializerProtocol) -> Prints:
        """The prints of all its items."""
        if self._prints is None:
            self._decoded(serde)
        assert self._prints is not None
        return self._prints


class Piece(NamedTuple):
    """A segment with its chunk at hand."""

    chunk: Chunk
    start: int
    stop: int

    @property
    def segment(self) -> Segment:
        """As it is stored."""
        return Segment(self.chunk.id, self.start, self.stop)


class ListName(NamedTuple):
    """Which list: the session's key, the base of the thread's keys, and the channel."""

    session: Key
    base: str
    channel: str


_ChunkKey = tuple[int, Key, bytes]


class ChunkCache:
    """Chunks that were used of late, and the latest lists. Thread-safe.

    A chunk never changes, so it is never stale; that it is part of a list, the stored list says.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._chunks: OrderedDict[_ChunkKey, tuple[Chunk, SerializerProtocol, int, float]] = OrderedDict()
        self._latest: OrderedDict[ListName, tuple[Segments, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._chunks) + len(self._latest)

    def get(self, key: _ChunkKey) -> Chunk | None:
        """A chunk, as the most recently used."""
        with self._lock:
            found = self._chunks.get(key)
            if found is None:
                return None
            self._chunks[key] = (*found[:3], self._clock())
            self._chunks.move_to_end(key)
            return found[0]

    def put(self, key: _ChunkKey, chunk: Chunk, serde: SerializerProtocol) -> None:
        """Keep a chunk, and with it the serializer, whose address is part of the key."""
        with self._lock:
            self._drop(key)
            size = 6 * chunk.size + 2048  # encoded, prints, and objects
            self._chunks[key] = (chunk, serde, size, self._clock())
            self._bytes += size
            self._shrink()
        sweep_regularly(self)

    def latest(self, place: ListName) -> Segments:
        """The version of a list that was noted last."""
        with self._lock:
            found = self._latest.get(place)
            return () if found is None else found[0]

    def note_latest(self, place: ListName, segments: Segments) -> None:
        """Note a version of a list."""
        with self._lock:
            self._latest[place] = segments, self._clock()
            self._latest.move_to_end(place)
            self._shrink()
        sweep_regularly(self)

    def sweep(self) -> None:
        """Drop what would be too old before the next sweep."""
        with self._lock:
            self._shrink(SWEEP_SECONDS)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._chunks.clear()
            self._latest.clear()
            self._bytes = 0

    def _shrink(self, ahead: float = 0.0) -> None:
        oldest_allowed = self._clock() + ahead - MOST_SECONDS
        while self._chunks:
            key, (_, _, _, used) = next(iter(self._chunks.items()))
            if self._bytes <= CACHE_BYTES and used > oldest_allowed:
                break
            self._drop(key)
        while self._latest:
            place, (_, noted) = next(iter(self._latest.items()))
            if len(self._latest) <= _MOST_LATEST and noted > oldest_allowed:
                break
            del self._latest[place]

    def _drop(self, key: _ChunkKey) -> None:
        found = self._chunks.pop(key, None)
        if found is not None:
            self._bytes -= found[2]


cache = ChunkCache()


def _after_fork() -> None:
    cache._lock = threading.Lock()  # whoever held it is not in this process
    cache.clear()


os.register_at_fork(after_in_child=_after_fork)
