"""A whole session, as one thing: to fork it, to put it into a document, to bring it to another store.

The document is JSON. What a session holds is in it as the codec wrote it (MessagePack with the extensions that
`agent_sessions.codec` lists), in base64: so it comes back byte for byte, on any store.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from msgspec import Struct, field

from ..errors import InvalidError, SessionConflictError, SessionNotFoundError
from ..stores.base import (
    ABSENT,
    CollectionChange,
    Commit,
    EntryRange,
    Key,
    LogChange,
    LogWanted,
    Opened,
    Part,
    Row,
    Store,
    Wanted,
)
from ..stores.lifetime import Course, Lifetime

FORMAT = "agent-sessions/session/1"

_TRIES = 20


class Record(Struct, forbid_unknown_fields=True):
    """The record in a document. Times are milliseconds since 1970-01-01 UTC."""

    session_id: str
    started_at: int
    active_at: int
    user_id: str | None = None
    ended_at: int | None = None
    expires_at: int | None = None
    own: dict[str, int | None] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    fields: dict[str, bytes] = field(default_factory=dict)


class Document(Struct, forbid_unknown_fields=True):
    """A session as a document. Bytes are base64 in JSON."""

    format: str
    record: Record
    values: dict[str, dict[str, bytes]] = field(default_factory=dict)
    logs: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    collections: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)


def to_json(document: Document) -> dict[str, Any]:
    """The document as what `json.dumps` takes."""
    data: dict[str, Any] = msgspec.to_builtins(document)
    return data


def from_json(data: object) -> Document:
    """The document in what `json.loads` gave.

    Raises:
        InvalidError: `INVALID_DOCUMENT`: it is none, or of a format that this version does not read.
    """
    try:
        document = msgspec.convert(data, Document)
    except msgspec.ValidationError as error:
        raise InvalidError("DOCUMENT", f"this is no exported session: {error}", field="data") from None
    if document.format != FORMAT:
        raise InvalidError("DOCUMENT", f"the document's format is not {FORMAT}", field="format")
    return document


async def read_whole(store: Store, key: Key) -> Document:
    """All of a session, as it was at one moment.

    Raises:
        SessionNotFoundError: There is none.
        SessionConflictError: It changes so often that it can't be read in one piece.
    """
    for _ in range(_TRIES):
        seen = await store.open(key, wanted=Wanted(values=False))
        if seen.row is None:
            raise SessionNotFoundError(f"there is no session {key.id!r}")
        logs = [part for part, head in seen.log_heads.items() if head.count]
        collections = list(seen.collections)
        whole = await store.open(
            key,
            wanted=Wanted(logs=[LogWanted(part) for part in logs], ranges=[EntryRange(part) for part in collections]),
        )
        if whole.row is not None and whole.version == seen.version:
            return _document(key, whole.row, whole, logs, collections)
    raise SessionConflictError(f"session {key.id!r} changes too often to be read in one piece: lock it, or try again")


def to_commit(document: Document, lifetime: Lifetime, *, as_new: bool) -> Commit:
    """The commit that makes the session; `as_new`: from now on, else as old as it is."""
    record = document.record
    return Commit(
        id=secrets.token_bytes(8),
        owner="copy",
        expected=ABSENT,
        lifetime=lifetime,
        own=record.own,
        expires_at=record.expires_at,
        course=None if as_new else Course(record.started_at, record.active_at, record.ended_at, record.expires_at),
        belongs_to=record.user_id,
        values={Part(*names): data for *names, data in _flat(document.values)},
        logs={Part(*names): LogChange(append=items) for *names, items in _flat(document.logs)},
        collections={
            Part(*names): CollectionChange(entries=dict(held)) for *names, held in _flat(document.collections)
        },
        fields=dict(record.fields),
        counters=record.counters,
    )


def _document(key: Key, row: Row, opened: Opened, logs: list[Part], collections: list[Part]) -> Document:
    record = Record(
        session_id=key.id,
        started_at=row.started_at,
        active_at=row.active_at,
        user_id=row.belongs_to,
        ended_at=row.ended_at,
        expires_at=row.expires_at,
        own=dict(row.own),
        counters=row.counters,
        fields=row.fields or {},
    )
    document = Document(FORMAT, record, values=opened.values)
    for part, read in zip(logs, opened.logs, strict=True):
        document.logs.setdefault(part.namespace, {})[part.name] = read.items
    for part, entries in zip(collections, opened.ranges, strict=True):
        document.collections.setdefault(part.namespace, {})[part.name] = dict(entries)
    return document


def _flat(nested: dict[str, dict[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(namespace, name, held) for namespace, named in nested.items() for name, held in named.items()]
