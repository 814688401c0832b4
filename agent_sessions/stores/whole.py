"""All of a key at one moment, as one thing: to copy it within its store, or to bring it to another one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from ..codec.unreadable import unreadable
from ..errors import SessionConflictError
from .base import (
    ABSENT,
    CollectionChange,
    Commit,
    Discreet,
    EntryRange,
    Key,
    LogChange,
    LogWanted,
    Opened,
    Part,
    Row,
    Store,
    Version,
    Wanted,
)
from .lifetime import Course, Lifetime

COMMITS_BEFORE = "commits_before"
"""The counter of a copy that says how many commits its original had seen: a session's revision goes on from there."""

_TRIES = 20


class Content(Discreet, Struct):
    """What a copy has in common with what it was made of: everything but version and lifetime.

    Log items have new sequence numbers in a copy, which begin at 1. An empty log is as good as none.
    """

    course: Course
    own: dict[str, int | None]
    belongs_to: str | None
    counters: dict[str, int]
    fields: dict[str, bytes]
    values: dict[Part, bytes]
    logs: dict[Part, list[bytes]]
    collections: dict[Part, dict[str, bytes]]

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        """Everything that the codec has written, with what to call it in an error."""
        for name, data in self.fields.items():
            yield f"record field {name!r}", data
        for part, data in self.values.items():
            yield _named("value", part), data
        for part, items in self.logs.items():
            what = _named("log", part)
            for data in items:
                yield what, data
        for part, entries in self.collections.items():
            for name, data in entries.items():
                yield f"entry {name!r} of {_named('collection', part)}", data

    def size(self) -> int:
        """The bytes of all pieces."""
        return sum(len(data) for _, data in self.pieces())

    def refuse_unreadable(self, copied: str) -> None:
        """Raise if something in it can't be decrypted: a copy would not be one.

        Raises:
            DecryptionError, FormatTooNewError: The message begins with what was to be `copied`.
        """
        for what, data in self.pieces():
            if (problem := unreadable(data)) is not None:
                raise type(problem)(f"{copied} can't be copied: {what}: {problem.message}", field=what)

    def commit(
        self, lifetime: Lifetime, *, commits_before: int = 0, as_new: bool = False, id: bytes | None = None
    ) -> Commit:
        """The commit that makes a key of it, in one step, however large it is.

        Args:
            lifetime: The one in force there.
            commits_before: How many commits the original has seen.
            as_new: It starts now, and has not ended; else it is as old as it is.
            id: The commit's. None: a new one.
        """
        return Commit(
            id=secrets.token_bytes(8) if id is None else id,
            owner="copy",
            expected=ABSENT,
            lifetime=lifetime,
            own=self.own,
            expires_at=self.course.expires_at,
            course=None if as_new else self.course,
            belongs_to=self.belongs_to,
            values=dict(self.values),
            logs={part: LogChange(append=items) for part, items in self.logs.items()},
            collections={part: CollectionChange(entries=dict(held)) for part, held in self.collections.items()},
            fields=dict(self.fields),
            counters={**self.counters, COMMITS_BEFORE: commits_before} if commits_before else self.counters,
        )


class Whole(Discreet, Struct):
    """A key at one moment."""

    version: Version
    row: Row
    content: Content

    @property
    def commits(self) -> int:
        """How many commits it has seen, those of what it is a copy of included."""
        return commits_seen(self.version.revision, self.row)


def commits_seen(revision: int, row: Row) -> int:
    """How many commits a key has seen that is at this revision, those of what it is a copy of included."""
    return revision + row.counters.get(COMMITS_BEFORE, 0)


def own_counters(row: Row) -> dict[str, int]:
    """The counters of a key, but for what only a copy has. One that is 0 is as good as none."""
    return {name: number for name, number in row.counters.items() if number and name != COMMITS_BEFORE}


async def read_whole(store: Store, key: Key, seen: Opened | None = None) -> Whole | None:
    """All of a key, as it was at one moment; None if it is absent.

    Args:
        store: The store.
        key: The key.
        seen: The key as it was just opened, without values. What parts it has need not be asked again then.

    Raises:
        SessionConflictError: It changes so often that it can't be read in one piece.
    """
    for _ in range(_TRIES):
        if seen is None:
            seen = await store.open(key, wanted=Wanted(values=False))
        if seen.row is None:
            return None
        logs = [part for part, head in seen.log_heads.items() if head.count]
        collections = list(seen.collections)
        whole = await store.open(
            key,
            wanted=Wanted(logs=[LogWanted(part) for part in logs], ranges=[EntryRange(part) for part in collections]),
        )
        if whole.row is not None and whole.version == seen.version:
            return Whole(whole.version, whole.row, _content(whole.row, whole, logs, collections))
        seen = None
    raise SessionConflictError(
        f"{key.kind} {key.id!r} changes too often to be read in one piece: lock it, or try again"
    )


def _content(row: Row, opened: Opened, logs: list[Part], collections: list[Part]) -> Content:
    return Content(
        course=row.course,
        own=dict(row.own),
        belongs_to=row.belongs_to,
        counters=own_counters(row),
        fields=row.fields or {},
        values=flat(opened.values),
        logs={part: read.items for part, read in zip(logs, opened.logs, strict=True)},
        collections={part: dict(found) for part, found in zip(collections, opened.ranges, strict=True) if found},
    )


def flat(nested: dict[str, dict[str, Any]]) -> dict[Part, Any]:
    """What is kept by namespace and name, by part."""
    return {Part(namespace, name): held for namespace, named in nested.items() for name, held in named.items()}


def _named(what: str, part: Part) -> str:
    return f"{what} {part.name!r} in namespace {part.namespace!r}"
