"""A turn: one unit of work on a session, stored whole or not at all."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from weakref import WeakSet

from msgspec import structs

from .. import codec
from ..background import finished
from ..errors import (
    SerializationError,
    SessionBusyError,
    SessionConflictError,
    SessionError,
    StateLostError,
    TurnClosedError,
)
from ..stores.base import Commit, EntryRange, Key, Opened, Part, Store
from ..stores.lifetime import Lifetime
from .commits import Traffic, check_size, store_commit
from .drafts import Drafts, confirmed
from .gate import Gate
from .image import Image
from .logs import LogDraft, LogWindow, encode_items
from .values import Values, decode_field

CommitMode = Literal["turn", "step"]

_SNAPSHOT = "this is a snapshot, for reading only; write in `async with manager.open(...)`"


_turns: WeakSet[Turn] = WeakSet()


_OPENED = {"end_ms": None}
"""What a session that is made by opening it has of its own: a conversation that rests does not end by that."""


class Turn:
    """The state of a session while one owner works on it: an image, and drafts of what is to change.

    Every operation is thread-safe. Those that may need the store are coroutines and may run on any event loop; they
    wait for one another, so that a read never falls between two halves of a step.
    """

    def __init__(
        self,
        store: Store,
        key: Key,
        image: Image,
        *,
        owner: str | None,
        lease_ms: int = 0,
        lifetime: Lifetime = Lifetime(),  # noqa: B008 - a tuple
        belongs_to: str | None = None,
        mode: CommitMode = "turn",
        blind: bool = False,
    ) -> None:
        self.store = store
        self.key = key
        self.owner = owner
        self.belongs_to = belongs_to
        self.mode = mode
        self._lock = threading.RLock()
        self.values = Values(image.values, lock=self._lock, read_only=_SNAPSHOT if owner is None else None)
        self.traffic = Traffic()
        self.is_certain = True
        """Whether the image is known to be what is stored, so that a cache may keep it."""
        self.is_stored = False
        """Whether its last commit is stored."""
        self.has_made = False
        """Whether a commit of it made the session."""
        self.has_given = False
        """Whether a commit of it gave the session to its user: a new one, or one that was nobody's."""
        self._image = image
        self._lease_ms = lease_ms
        self._lifetime = lifetime
        self._blind = blind
        self._io = Gate()
        self._drafts = Drafts()
        self._fields_on_their_way: dict[str, bytes | None] = {}
        self._failure: SessionError | None = None
        self._closed: str | None = None

        _turns.add(self)

    # ------------------------------------------------------------------------------------------------ about itself

    @property
    def image(self) -> Image:
        """What is stored, as far as this turn knows."""
        return self._image

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self._closed is None

    def is_busy_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether an operation on this event loop is under way, so that blocking the loop would block the turn."""
        return self._io.is_used_on(loop)

    def close(self, reason: str) -> None:
        """From now on every use raises `TurnClosedError` with this reason."""
        with self._lock:
            self._closed = self._closed or reason
            self.values.close(reason)

    @property
    def _over(self) -> str:
        return f"the turn on session {self.key.id!r} is over; open the session again"

    def field(self, name: str) -> Any:
        """A field of the record, or None."""
        with self._lock:
            data = self._drafts.fields[name] if name in self._drafts.fields else self._stored_field(name)
        return None if data is None else decode_field(self.key, name, data)

    def set_field(self, name: str, value: Any) -> None:
        """Change a field of the record; None removes it."""
        with self._lock:
            self._check_writable()
            data = None if value is None else codec.encode(value)
            self._drafts.fields.pop(name, None)
            if data != self._stored_field(name):
                self._drafts.fields[name] = data

    def count(self, counter: str, more: int) -> None:
        """Add to a counter of the record; less than 0 takes off."""
        with self._lock:
            self._check_writable()
            self._drafts.count(counter, more)

    def log_counts(self) -> dict[Part, int]:
        """Every log that has items, with their number."""
        with self._lock:
            self._check_open()
            counts = {part: head.count for part, head in self._image.log_heads.items()}
            for part, draft in self._drafts.logs.items():
                counts[part] = draft.remaining(self._image.count(part)) + len(draft.appended)
            return {part: count for part, count in counts.items() if count}

    def filled_collections(self) -> set[Part]:
        """Every collection that has entries, or, where entries were deleted in this turn, may have."""
        with self._lock:
            self._check_open()
            drafted = {part for part, draft in self._drafts.collections.items() if any(draft.entries.values())}
            return {*self._image.collections, *drafted}

    def namespaces(self) -> list[str]:
        """Every namespace that holds anything."""
        with self._lock:
            parts = (*self.log_counts(), *self.filled_collections())
            return sorted({*self.values.namespaces(), *(part.namespace for part in parts)})

    # ------------------------------------------------------------------------------------------------ logs

    async def count_items(self, part: Part) -> int:
        """How many items a log has."""
        with self._lock:
            self._check_open()
            draft = self._drafts.logs.get(part)
            stored = self._image.count(part)
            return stored if draft is None else draft.remaining(stored) + len(draft.appended)

    async def read_items(self, part: Part, limit: int | None) -> list[Any]:
        """The last `limit` items (None: all), oldest first."""
        if limit is not None and limit <= 0:
            return []
        while True:  # until nobody has changed the log while it was being loaded
            with self._lock:
                self._check_open()
                draft, window = self._log_draft(part), self._image.window(part)
                needed = None if limit is None else limit - len(draft.appended) + draft.popped
                if self._holds(part, needed):
                    own = [codec.decode(data) for data in draft.appended]
                    stop = window.held - (window.head.count - draft.remaining(window.head.count))
                    start = 0 if limit is None else max(0, stop - max(0, limit - len(own)))
                    items = self._items_of(window, start, max(0, stop)) + own
                    return items if limit is None else items[-limit:]
            await self._load_log(part, needed)

    async def append_items(self, part: Part, items: Sequence[Any], *, counter: str | None = None) -> None:
        """Add items at the end, all of them or none. The `counter` of a log, here and below, goes by its length."""
        encoded = encode_items(part, items)
        with self._lock:
            self._check_writable()
            self._drafts.log(part).append(encoded)
            if counter is not None:
                self._drafts.count(counter, len(encoded))
        await self._step()

    async def pop_item(self, part: Part, *, counter: str | None = None) -> Any:
        """Take the last item off and return it; None from an empty log."""
        while True:  # until nobody has popped meanwhile what was loaded for this
            with self._lock:
                self._check_writable()
                draft = self._log_draft(part)
                if not draft.appended and draft.remaining(self._image.count(part)) <= 0:
                    return None
                needed = draft.popped + 1
                if draft.appended or self._holds(part, needed):
                    item = self._pop(part)
                    if counter is not None:
                        self._drafts.count(counter, -1)
                    break
            await self._load_log(part, needed)
        await self._step()
        return item

    async def clear_items(self, part: Part, *, counter: str | None = None) -> None:
        """Take all items off."""
        with self._lock:
            self._check_writable()
            draft = self._drafts.log(part)
            if counter is not None:
                self._drafts.count(counter, -draft.remaining(self._image.count(part)) - len(draft.appended))
            draft.clear()
        await self._step()

    # ------------------------------------------------------------------------------------------------ collections

    async def get_entries(self, part: Part, keys: Sequence[str]) -> dict[str, Any]:
        """Those of these keys that have an entry, with it, decoded for this caller."""
        with self._lock:
            self._check_open()
            found = {key: self._entry(part, key, {}) for key in keys if self._knows_entry(part, key)}
        missing = [(part, key) for key in keys if key not in found]
        if missing:
            async with self._io:
                opened = await self._fetch(entries=missing)
            found |= {key: data for (_, key), data in zip(missing, opened.entries, strict=True)}
        with self._lock:
            self._check_open()
            entries = {key: self._entry(part, key, found) for key in keys}
        return {key: _decode_entry(part, key, data) for key, data in entries.items() if data is not None}

    async def put_entries(self, part: Part, entries: Mapping[str, Any]) -> None:
        """Put entries."""
        await self._draft_entries(
            part, {key: codec.encode(value, root=f"{part.name}[{key!r}]") for key, value in entries.items()}
        )

    async def delete_entries(self, part: Part, keys: Sequence[str]) -> None:
        """Delete entries."""
        await self._draft_entries(part, dict.fromkeys(keys))

    async def delete_prefix(self, part: Part, prefix: str) -> None:
        """Delete every entry whose key starts so."""
        with self._lock:
            self._check_writable()
            self._drafts.collection(part).delete_prefix(prefix)
        await self._step()

    async def range_entries(self, asked: EntryRange) -> list[tuple[str, Any]]:
        """The entries of a range, what this turn changed included."""
        part = asked.part
        with self._lock:
            self._check_open()
            draft = self._drafts.collections.get(part)
            draft = None if draft is None else draft.copy()
            stored_any = part in self._image.collections
        found: list[tuple[str, bytes]] = []
        if stored_any:
            async with self._io:
                opened = await self._fetch(ranges=[asked if draft is None else draft.to_ask(asked)])
            found = opened.ranges[0]
        if draft is not None:
            found = draft.merged(found, asked)
        return [(key, _decode_entry(part, key, data)) for key, data in found]

    async def _draft_entries(self, part: Part, entries: dict[str, bytes | None]) -> None:
        with self._lock:
            self._check_writable()
            self._drafts.collection(part).put(entries)
        await self._step()

    # ------------------------------------------------------------------------------------------------ the end

    async def commit(self, *, release: bool) -> None:
        """Store all drafts as one commit; with `release`, give the lease up in it.

        The last commit of a turn is made even if nothing was changed: it counts as activity, and makes a new session.
        From its beginning on the turn is closed: what came later could not be part of it.

        Raises:
            SessionConflictError: The session changed since the turn read it.
            SessionBusyError: Another turn holds the lease (of a blind commit only).
            SessionNotFoundError: The session was deleted meanwhile.
            CommitTooLargeError: More than 32 MiB.
            CommitUnknownError: The store did not answer for as long as the lease lasts.
        """
        async with self._io:
            with self._lock:
                self._check_failure()
                if not release and self.is_stored:
                    return  # the last commit of the turn took this along
                self._check_open()
                try:
                    commit, folded = self._fold(release)
                except SessionError as error:
                    self._failure = error
                    raise
                self._image = folded
                if release:
                    self.close(self._over)
            if commit is not None:
                await finished(lambda: self._store(commit, folded))

    async def discard(self) -> None:
        """Close the turn without a commit; return when nothing of it is on its way to the store any more."""
        self.close(self._over)
        async with self._io:
            return

    async def _store(self, commit: Commit, folded: Image) -> None:
        try:
            committed = await store_commit(self.store, self.key, commit, self._lease_ms, self.traffic)
        except SessionError as error:
            self._failure = error if self._blind else _lost_lease_is_conflict(error, self.key)
            raise self._failure from error
        with self._lock:
            was_made = committed.version.revision == 1
            self.has_made = self.has_made or was_made
            if commit.belongs_to is not None and (was_made or folded.row is None or folded.row.belongs_to is None):
                self.has_given = True
            self._image = confirmed(folded, commit, committed)
            self._fields_on_their_way = {}
            self.is_certain = self.is_certain and committed.previous == folded.version and not committed.repeated
            self.is_stored = commit.hold_ms is None

    async def _step(self) -> None:
        if self.mode == "step":
            await self.commit(release=False)

    def _fold(self, release: bool) -> tuple[Commit | None, Image]:
        """Take the drafts: the commit that stores them, and the image as it will be."""
        image, values = self._image, self.values.take()
        drafts, self._drafts = self._drafts, Drafts()
        self._fields_on_their_way = drafts.fields
        if not release and not values and not drafts:
            return None, image
        commit = Commit(
            id=secrets.token_bytes(8),
            owner=self.owner or "",
            expected=None if self._blind else image.version,
            hold_ms=None if release else self._lease_ms,
            lifetime=self._lifetime,
            own=_OPENED,
            belongs_to=self.belongs_to,
            values=values,
        )
        drafts.write_to(commit)
        self.traffic.bytes_written += check_size(commit, self.key)
        return commit, drafts.folded_into(image, self.values.stored)

    # ------------------------------------------------------------------------------------------------ reading along

    async def _load_log(self, part: Part, limit: int | None) -> None:
        async with self._io:
            if self._holds(part, limit):  # somebody else has loaded it meanwhile
                return
            await self._fetch(logs={part: limit})
            if not self._holds(part, limit):
                raise StateLostError(
                    f"log {part.name!r} in namespace {part.namespace!r} of session {self.key.id!r} has fewer items "
                    "than its record counts"
                )

    async def _fetch(
        self,
        *,
        logs: Mapping[Part, int | None] | None = None,
        entries: Iterable[tuple[Part, str]] = (),
        ranges: Iterable[EntryRange] = (),
    ) -> Opened:
        """Read parts of the session that the turn does not have yet, at the turn's own version. Inside `_io`."""
        with self._lock:
            self._check_open()
            image = self._image
        narrow = structs.replace(image, logs={})  # only what is asked for
        wanted = narrow.wanted(logs or {}, values=False, entries=entries, ranges=ranges)
        opened = await self.store.open(self.key, wanted=wanted, known=image.known)
        self.traffic.count_read(opened)
        with self._lock:
            if opened.version != image.version:
                raise SessionConflictError(
                    f"session {self.key.id!r} changed while it was being read. Open it again; "
                    "what is needed at one moment can be asked for when it is opened."
                )
            learned = narrow.learned(opened, wanted)
            self._image = structs.replace(
                image, logs={**image.logs, **learned.logs}, entries={**image.entries, **learned.entries}
            )
        return opened

    # ------------------------------------------------------------------------------------------------ small parts

    def _check_open(self) -> None:
        if self._closed is not None:
            raise TurnClosedError(self._closed)
        self._check_failure()

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_writable(self) -> None:
        self._check_open()
        if self.owner is None:
            raise TurnClosedError(_SNAPSHOT)

    def _stored_field(self, name: str) -> bytes | None:
        """What is stored, or about to be: a row is known only when the store has answered."""
        if name in self._fields_on_their_way:
            return self._fields_on_their_way[name]
        return self._image.fields.get(name)

    def _log_draft(self, part: Part) -> LogDraft:
        return self._drafts.logs.get(part) or LogDraft()

    def _holds(self, part: Part, limit: int | None) -> bool:
        """Whether the last `limit` stored items of a log (None: all) are here, or are not part of it any more."""
        if self._log_draft(part).cleared or self._image.count(part) == 0:
            return True
        return (limit is not None and limit <= 0) or self._image.window(part).covers(limit)

    def _pop(self, part: Part) -> Any:
        draft = self._drafts.log(part)
        if draft.appended:
            item = codec.decode(draft.appended[-1])
            draft.appended = draft.appended[:-1]
            return item
        window = self._image.window(part)
        item = window.buffer.item(window.held - draft.popped - 1)
        draft.popped += 1
        return item

    def _items_of(self, window: LogWindow, start: int, stop: int) -> list[Any]:
        if self.owner is None:
            return window.buffer.copies(start, stop)
        return window.buffer.hand_out(start, stop)

    def _knows_entry(self, part: Part, key: str) -> bool:
        draft = self._drafts.collections.get(part)
        if draft is not None and draft.decides(key):
            return True
        return part not in self._image.collections or key in self._image.entries.get(part, {})

    def _entry(self, part: Part, key: str, found: Mapping[str, bytes | None]) -> bytes | None:
        draft = self._drafts.collections.get(part)
        if draft is not None and draft.decides(key):
            return draft.entries.get(key)
        held = self._image.entries.get(part, {})
        return held[key] if key in held else found.get(key)


def _lost_lease_is_conflict(error: SessionError, key: Key) -> SessionError:
    if not isinstance(error, SessionBusyError):
        return error
    return SessionConflictError(
        f"the lease of session {key.id!r} was lost to another turn; nothing of this one was stored. Repeat it."
    )


def _decode_entry(part: Part, key: str, data: bytes) -> Any:
    try:
        return codec.decode(data)
    except SerializationError as error:
        raise type(error)(
            f"entry {key!r} of {part.name!r} in namespace {part.namespace!r} can't be read: {error.message}", field=key
        ) from error


def _after_fork() -> None:
    for turn in list(_turns):  # the parent's, which will commit them: what was done here would be lost
        turn._lock = turn.values._lock = threading.RLock()
        turn.close("this turn runs in the process that this one was forked from; open the session again here")


os.register_at_fork(after_in_child=_after_fork)
