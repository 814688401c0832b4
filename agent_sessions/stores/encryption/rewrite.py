"""Encrypting one store key anew, with the first encryption key."""

from __future__ import annotations

import secrets

from ...codec.unreadable import unreadable
from ..base import CollectionChange, Commit, EntryRange, Key, LogChange, LogWanted, Opened, Part, Store, Wanted
from .envelope import Box, Unreadable, entry_place, field_place, log_place, value_place

CHUNK_BYTES = 4 * 2**20
CHUNK_PIECES = 500
"""The most that one commit rewrites, if it is more than one piece. A log is one: it can't change but at its end."""

PAGE_ENTRIES = 100
"""How many entries of a collection are read at a time."""


class Moved(Exception):
    """Somebody else has changed the key since it was read."""


class Rewrite:
    """The rewriting of one key: every piece that is not encrypted with the first key is, piece by piece the same data.

    The commits are maintenance, each one whole and on the version that the one before left. So at any moment all of
    the key is readable by whoever has both keys, and a rewriting that is broken off is gone on with by the next.
    What can't be decrypted is left byte by byte as it is.

    Args:
        store: The store that keeps the encrypted pieces.
        key: The key to rewrite.
        box: The encryption of that key.
        owner: Who commits.
        hold_ms: Keep the owner's lease for so long after each commit; None: there is no lease.
    """

    def __init__(self, store: Store, key: Key, box: Box, owner: str, hold_ms: int | None) -> None:
        self.changed = False
        """Whether anything was rewritten."""
        self._left: dict[str, list[str]] = {}
        self._store = store
        self._key = key
        self._box = box
        self._owner = owner
        self._hold_ms = hold_ms

    @property
    def left(self) -> list[str]:
        """What could not be decrypted, for each reason: the first piece, and how many more."""
        return [
            f"{pieces[0]}{f' and {len(pieces) - 1} more' if len(pieces) > 1 else ''}: {reason}"
            for reason, pieces in self._left.items()
        ]

    async def run(self, opened: Opened) -> None:
        """Rewrite what was opened, all values and fields in it.

        Raises:
            Moved, SessionConflictError, SessionBusyError: Somebody else is at work on the key.
        """
        if opened.row is None:
            return
        self._version = opened.version
        self._begin()
        for name, data in (opened.row.fields or {}).items():
            if (renewed := self._renewed(field_place(name), data, f"record field {name!r}")) is not None:
                await self._make_room(1, len(renewed))
                self._chunk.fields[name] = renewed
        for namespace, named in opened.values.items():
            for name, data in named.items():
                part = Part(namespace, name)
                if (renewed := self._renewed(value_place(part), data, _named("value", part))) is not None:
                    await self._make_room(1, len(renewed))
                    self._chunk.values[part] = renewed
        for part in opened.collections:
            await self._rewrite_collection(part)
        for part, head in opened.log_heads.items():
            if head.count:
                await self._rewrite_log(part)
        await self._commit()

    async def _rewrite_collection(self, part: Part) -> None:
        page = EntryRange(part, limit=PAGE_ENTRIES)
        while True:
            [found] = (await self._read(Wanted(values=False, ranges=[page]))).ranges
            for name, data in found:
                what = f"entry {name!r} of {_named('collection', part)}"
                if (renewed := self._renewed(entry_place(part, name), data, what)) is not None:
                    await self._make_room(1, len(renewed))
                    self._chunk.collections.setdefault(part, CollectionChange()).entries[name] = renewed
            if len(found) < PAGE_ENTRIES:
                return
            page = page._replace(after=found[-1][0])

    async def _rewrite_log(self, part: Part) -> None:
        [log] = (await self._read(Wanted(values=False, logs=[LogWanted(part)]))).logs
        place = log_place(part)
        try:
            renewed = [self._box.renew(place, data) for data in log.items]
        except Unreadable as error:
            self._leave(_named("log", part), error)
            return
        if all(new is old for new, old in zip(renewed, log.items, strict=True)):
            return
        await self._make_room(len(renewed), sum(map(len, renewed)))
        self._chunk.logs[part] = LogChange(clear=True, append=renewed)

    # ------------------------------------------------------------------------------------------------ pieces

    def _renewed(self, place: bytes, data: bytes, what: str) -> bytes | None:
        """The piece as it is to be stored; None if it stays as it is."""
        try:
            renewed = self._box.renew(place, data)
        except Unreadable as error:
            self._leave(what, error)
            return None
        return None if renewed is data else renewed

    def _leave(self, what: str, error: Unreadable) -> None:
        reason = unreadable(error.refusal)
        assert reason is not None
        self._left.setdefault(reason.message, []).append(what)

    # ------------------------------------------------------------------------------------------------ chunks

    def _begin(self) -> None:
        self._chunk = Commit(
            id=secrets.token_bytes(8),
            owner=self._owner,
            expected=self._version,
            hold_ms=self._hold_ms,
            maintenance=True,
        )
        self._pieces = self._size = 0

    async def _make_room(self, pieces: int, size: int) -> None:
        """Commit what there is, if with so much more it would be too much for one commit."""
        if self._pieces + pieces > CHUNK_PIECES or self._size + size > CHUNK_BYTES:
            await self._commit()
        self._pieces += pieces
        self._size += size

    async def _commit(self) -> None:
        if self._pieces:
            self._version = (await self._store.commit(self._key, self._chunk)).version
            self.changed = True
            self._begin()

    async def _read(self, wanted: Wanted) -> Opened:
        opened = await self._store.open(self._key, wanted=wanted)
        if opened.version != self._version:
            raise Moved
        return opened


def _named(what: str, part: Part) -> str:
    return f"{what} {part.name!r} in namespace {part.namespace!r}"
