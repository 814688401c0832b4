"""Lists, as messages are, stored by what is new in them.

The items of a list are kept in *chunks*, each an entry that is never changed. A version of the list is a sequence of
*segments*: items `start` to `stop` of a chunk. One that has only grown is the segments of the version before and one
more, in a chunk of the new items. What was changed, replaced, removed or moved is found by the items' prints; the rest
stays where it is.

Of every 16 turns the segments are written again as one, of every 16 of those too: an item is written three times at
most, and a list of thousands of turns is read in some dozens of entries.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol
from msgspec import Struct

from agent_sessions.stores.base import Key

from .chunks import Chunk, ListName, Pair, Piece, Segments, cache
from .prints import Prints, are_prints_of, joined, prints_of

MERGED = 16
"""So many segments of one level at the end of a list are written again as one of the next level."""
SMALL = (16 * 1024, 64 * 1024)
"""By level, the bytes from which on a segment is left as it is."""
MOST_FRAGMENTS = 48
"""If a list is in more small segments than this, it is written again."""
CHUNK_BYTES = 128 * 1024
"""A chunk is closed when it has so many."""


class EncodedList(Struct, frozen=True):
    """A list as it is to be stored, if the version before is in the segments of `base`."""

    value: list[Any]
    base: Segments
    pieces: Sequence[Piece]

    @property
    def segments(self) -> Segments:
        """All segments."""
        return tuple(piece.segment for piece in self.pieces)

    @property
    def new_chunks(self) -> dict[bytes, Pair]:
        """The chunks that are not stored yet."""
        stored = {segment.chunk for segment in self.base}
        return {piece.chunk.id: piece.chunk.pair for piece in self.pieces if piece.chunk.id not in stored}


class Lists:
    """Encodes and decodes lists with one serializer; it knows the chunks that this process has seen of late."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self.serde = serde

    def known(self, session: Key, chunk_id: bytes) -> Chunk | None:
        """A chunk that needs not be read."""
        return cache.get((id(self.serde), session, chunk_id))

    def learn(self, session: Key, chunk_id: bytes, pair: Pair) -> Chunk:
        """Note a chunk that was read."""
        return self._remember(session, Chunk(chunk_id, pair))

    def note_latest(self, place: ListName, segments: Segments) -> None:
        """Note where a list is that somebody goes on with: the next version of it probably follows on that one."""
        cache.note_latest(place, segments)

    def decoded(self, pieces: Sequence[Piece], *, shared: bool = False) -> list[Any]:
        """The list: of new objects, or of those that are shared by the turns of the session."""
        items: list[Any] = []
        for piece in pieces:
            items += piece.chunk.items(self.serde, piece.start, piece.stop, shared=shared)
        return items

    def guessed(self, place: ListName, value: list[Any]) -> EncodedList:
        """Encode a list as it is now, on the guess that it follows on the version noted last."""
        found = [(self.known(place.session, one.chunk), one) for one in cache.latest(place)]
        base = [Piece(chunk, one.start, one.stop) for chunk, one in found if chunk is not None]
        return self.encoded(place.session, value, base if len(base) == len(found) else [])

    def encoded(self, session: Key, value: list[Any], base: Sequence[Piece]) -> EncodedList:
        """Encode a list as it is now, as what is new in it after the version in these pieces."""
        stored = joined([piece.chunk.prints(self.serde)[piece.start : piece.stop] for piece in base])
        prints = self._prints(value, stored)
        pieces: list[Piece] = []
        for run in _merged(_runs(prints, stored, base)):
            pieces += self._written(session, value, prints, run) if run.piece is None else [run.piece]
        return EncodedList(value.copy(), tuple(piece.segment for piece in base), pieces)

    def _prints(self, value: list[Any], stored: Prints) -> Prints:
        """The prints of a list as it is now, which has probably grown since it was stored."""
        if are_prints_of(stored, value[: len(stored)], self.serde):
            return joined([stored, prints_of(value[len(stored) :], self.serde)])
        return prints_of(value, self.serde)

    def _written(self, session: Key, value: list[Any], prints: Prints, run: Run) -> list[Piece]:
        """New chunks of the items of a run."""
        ends, size = [run.start], 0
        for place in range(run.start, run.stop):
            size += len(prints.packed[place])
            if size >= CHUNK_BYTES or place == run.stop - 1:
                ends.append(place + 1)
                size = 0
        pieces = []
        for start, stop in pairwise(ends):
            chunk_id = bytes([run.level]) + secrets.token_bytes(11)
            chunk = Chunk(chunk_id, self.serde.dumps_typed(value[start:stop]), prints[start:stop])
            pieces.append(Piece(self._remember(session, chunk), 0, stop - start))
        return pieces

    def _remember(self, session: Key, chunk: Chunk) -> Chunk:
        cache.put((id(self.serde), session, chunk.id), chunk, self.serde)
        return chunk


# --------------------------------------------------------------------------------------------------- what is new


class Run(NamedTuple):
    """Items of a new list that are one piece of the stored one, or, without a piece, are to be written."""

    start: int
    stop: int
    size: int
    """About how many bytes they take."""
    piece: Piece | None = None
    fresh_level: int = 0

    @property
    def level(self) -> int:
        """How often these items have been written again."""
        return self.fresh_level if self.piece is None else self.piece.chunk.level


def _runs(prints: Prints, stored: Prints, base: Sequence[Piece]) -> list[Run]:
    """The whole list in runs, in order."""
    same = prints.common(stored)
    if same == len(stored):
        return _grown(prints, same, base)
    sources = _sources(prints, stored, same)
    owners = [(piece, place) for piece in base for place in range(piece.start, piece.stop)]
    runs: list[Run] = []
    place = 0
    while place < len(prints):
        source, start = sources[place], place
        piece, first = (None, 0) if source is None else owners[source]
        place += 1
        while place < len(prints) and _goes_on(sources, owners, place, piece):
            place += 1
        taken = None if piece is None else Piece(piece.chunk, first, first + place - start)
        runs.append(Run(start, place, prints.size(start, place), taken))
    return runs


def _grown(prints: Prints, same: int, base: Sequence[Piece]) -> list[Run]:
    runs: list[Run] = []
    place = 0
    for piece in base:
        stop = place + piece.stop - piece.start
        runs.append(Run(place, stop, prints.size(place, stop), piece))
        place = stop
    if same < len(prints):
        runs.append(Run(same, len(prints), prints.size(same, len(prints))))
    return runs


def _goes_on(sources: list[int | None], owners: list[tuple[Piece, int]], place: int, piece: Piece | None) -> bool:
    """Whether the item of this place belongs to the same run as the one before it."""
    before, source = sources[place - 1], sources[place]
    if before is None or source is None:
        return before is source
    return source == before + 1 and owners[source][0] is piece


def _sources(prints: Prints, stored: Prints, same: int) -> list[int | None]:
    """For each item, where it is in the stored list. None: it is new. No stored item is two of the new list."""
    sources: list[int | None] = [*range(same)]
    held, used = stored.keys(), set[int]()
    places = {held[place]: place for place in range(len(held) - 1, same - 1, -1)}
    expected = same
    for key in prints.keys(same):
        found = expected if expected < len(held) and held[expected] == key else places.get(key)
        if found in used:
            found = None
        sources.append(found)
        if found is not None:
            used.add(found)
            expected = found
        expected += 1
    return sources


def _merged(runs: list[Run]) -> list[Run]:
    """The same list in fewer runs, if it is in many small ones."""
    fragments = [place for place, run in enumerate(runs) if run.size < SMALL[0]]
    if len(fragments) > MOST_FRAGMENTS:
        runs = [*runs[: fragments[0]], _rewritten(runs[fragments[0] :], len(SMALL))]
    for level, size in enumerate(SMALL):
        ending = (place for place, run in enumerate(reversed(runs)) if run.level != level or run.size >= size)
        count = next(ending, len(runs))
        if count >= MERGED:
            runs = [*runs[:-count], _rewritten(runs[-count:], level + 1)]
    return runs


def _rewritten(runs: list[Run], level: int) -> Run:
    return Run(runs[0].start, runs[-1].stop, sum(run.size for run in runs), fresh_level=level)
