"""What reads: opening a key, the status of a commit, listings."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field

from agent_sessions.errors import CommitTooLargeError, StateLostError
from agent_sessions.stores.base import (
    ABSENT,
    CommitStatus,
    Cursor,
    EntryRange,
    Found,
    Key,
    Keys,
    Kind,
    Known,
    LeaseWanted,
    LogHead,
    LogRead,
    LogWanted,
    Opened,
    Order,
    Page,
    Part,
    Version,
    Wanted,
)
from agent_sessions.stores.commit_ring import CommitRing
from agent_sessions.stores.lifetime import Status
from agent_sessions.stores.sqlite import leases, rows
from agent_sessions.stores.sqlite.rows import KeyRow
from agent_sessions.stores.sqlite.transaction import Transaction

ITEM_BITS = 28
"""An item's number stands in so many lower bits of its row's, that of its log in the 35 above: room for 268 million
items that a log ever had, and for 34 billion parts that the file ever had."""

_FIELDS = msgspec.msgpack.Decoder(dict[str, bytes])
_AFTER_EVERY_KEY = b"\xff"  # no byte of UTF-8


class Log(Struct):
    """A log's row of `part`."""

    p: int
    count: int = 0
    last: int = 0
    assigned: int = 0

    @property
    def head(self) -> LogHead:
        """Where the log stands."""
        return LogHead(self.count, self.last)

    def n(self, number: int) -> int:
        """The row number of an item.

        Raises:
            CommitTooLargeError: The log has had as many items as it can.
        """
        if number >> ITEM_BITS:
            raise CommitTooLargeError(
                f"a log in an SQLite file takes {(1 << ITEM_BITS) - 1} items in its life, popped ones counted:"
                " go on in another log"
            )
        return self.p << ITEM_BITS | number


class Parts(Struct):
    """Everything that `part` has on a key."""

    logs: dict[Part, Log] = field(default_factory=dict)
    collections: dict[Part, tuple[int, int]] = field(default_factory=dict)
    """Its number, and the revision that changed it last."""
    namespaces: dict[str, int] = field(default_factory=dict)
    """The revision that changed its values last."""


def open_key(tx: Transaction, key: Key, wanted: Wanted, known: Known | None, lease: LeaseWanted | None) -> Opened:
    """See `Store.open`. All is read before anything is written."""
    row = rows.load(tx, key)
    if lease is not None and not leases.is_free_for(tx, row, lease.owner):
        assert row is not None
        if lease.queue:
            leases.enqueue(tx, row, lease.owner)
        return Opened(tx.now, ABSENT, None, False, row.lease(tx.now), row.waiters)
    opened = Opened(tx.now, ABSENT, None)
    if row is not None and row.is_alive(tx.now):
        opened = _read(tx, key, row, wanted, known)
    if lease is not None:
        row = leases.take(tx, key, row, lease)
    if row is None:
        return opened
    return msgspec.structs.replace(opened, granted=lease is not None, lease=row.lease(tx.now), waiters=row.waiters)


def _read(tx: Transaction, key: Key, row: KeyRow, wanted: Wanted, known: Known | None) -> Opened:
    ring = CommitRing(row.commit_ids, row.revision)
    since = known.version.revision if known is not None and ring.has(known.version) else 0
    same_record = known is not None and known.record_tag == row.life.record_tag
    parts = read_parts(tx, row.k)
    return Opened(
        now=tx.now,
        version=ring.version,
        row=row.life.row(None if same_record else read_fields(tx, row.k)),
        continues=since > 0,
        values=_read_values(tx, row.k, parts, since) if wanted.values else {},
        log_heads={part: log.head for part, log in parts.logs.items()},
        collections={part: revision for part, (_, revision) in parts.collections.items()},
        logs=[_read_log(tx, key, parts.logs.get(log.part), log, usable=since > 0) for log in wanted.logs],
        entries=[_read_entry(tx, parts, part, name) for part, name in wanted.entries],
        ranges=[_read_range(tx, parts, asked) for asked in wanted.ranges],
    )


def read_parts(tx: Transaction, k: int) -> Parts:
    """What parts a key has."""
    parts = Parts()
    for sort, namespace, name, p, revision, count, last, assigned in tx.all(
        "SELECT sort, namespace, name, p, revision, count, last, assigned FROM part WHERE k = ?", k
    ):
        if sort == "l":
            parts.logs[Part(namespace, name)] = Log(p, count, last, assigned)
        elif sort == "c":
            parts.collections[Part(namespace, name)] = p, revision
        else:
            parts.namespaces[namespace] = revision
    return parts


def read_fields(tx: Transaction, k: int) -> dict[str, bytes]:
    """The record's fields."""
    found = tx.one("SELECT fields FROM record WHERE k = ?", k)
    return _FIELDS.decode(found[0]) if found is not None else {}


def _read_values(tx: Transaction, k: int, parts: Parts, since: int) -> dict[str, dict[str, bytes]]:
    if since == 0:
        values: dict[str, dict[str, bytes]] = {}
        for namespace, name, data in tx.all("SELECT namespace, name, data FROM value WHERE k = ?", k):
            values.setdefault(namespace, {})[name] = data
        return values
    changed = [namespace for namespace, revision in parts.namespaces.items() if revision > since]
    return {
        namespace: dict(tx.all("SELECT name, data FROM value WHERE k = ? AND namespace = ?", k, namespace))
        for namespace in changed
    }


def _read_log(tx: Transaction, key: Key, log: Log | None, wanted: LogWanted, *, usable: bool) -> LogRead:
    if log is None:
        return LogRead(LogHead(0, 0), [], False)
    if usable and 0 < wanted.count <= log.count:
        if (wanted.count, wanted.last) == log.head:
            return LogRead(log.head, [], True)
        place = tx.one("SELECT place FROM item WHERE n = ?", log.n(wanted.last))
        if place == (wanted.count,):
            return LogRead(log.head, _last_items(tx, key, wanted.part, log, log.count - wanted.count), True)
    limit = log.count if wanted.limit is None else min(wanted.limit, log.count)
    return LogRead(log.head, _last_items(tx, key, wanted.part, log, limit), False)


def _last_items(tx: Transaction, key: Key, part: Part, log: Log, number: int) -> list[bytes]:
    """The last items of a log, of which there are at least so many."""
    if number == 0:
        return []
    first = log.count - number + 1
    found = tx.all(
        "SELECT data FROM item WHERE n BETWEEN ? AND ? ORDER BY n DESC LIMIT ?", log.n(first), log.n(log.last), number
    )
    if len(found) < number:
        raise StateLostError(
            f"the log {part.namespace}/{part.name} of {key.kind} {key.id!r} has fewer items in the file than its head"
            " counts: it was changed by something else than agent-sessions, or is damaged"
        )
    return [data for (data,) in reversed(found)]


def _read_entry(tx: Transaction, parts: Parts, part: Part, name: str) -> bytes | None:
    if part not in parts.collections:
        return None
    found = tx.one("SELECT data FROM entry WHERE p = ? AND key = ?", parts.collections[part][0], name.encode())
    return found[0] if found is not None else None


def _read_range(tx: Transaction, parts: Parts, asked: EntryRange) -> list[tuple[str, bytes]]:
    if asked.part not in parts.collections:
        return []
    low, high = prefix_bounds(asked.prefix)
    above, below = ">=", "<"
    if asked.after is not None and (after := asked.after.encode()) >= low:
        low, above = after, ">"
    if asked.before is not None:
        high = min(high, asked.before.encode())
    found = tx.all(
        f"SELECT key, data FROM entry WHERE p = ? AND key {above} ? AND key {below} ?"
        f" ORDER BY key {'DESC' if asked.reverse else 'ASC'} LIMIT ?",
        *(parts.collections[asked.part][0], low, high, -1 if asked.limit is None else asked.limit),
    )
    return [(name.decode(), data) for name, data in found]


def prefix_bounds(prefix: str) -> tuple[bytes, bytes]:
    """Between which bytes, the second excluded, the keys lie that start so."""
    low = prefix.encode()
    return low, low + _AFTER_EVERY_KEY


def commit_status(tx: Transaction, key: Key, commit_id: bytes, since: Version) -> CommitStatus:
    """See `Store.commit_status`."""
    row = rows.load(tx, key)
    if row is None or not row.is_alive(tx.now):
        return "not_stored" if since == ABSENT else "unknown"
    return CommitRing(row.commit_ids, row.revision).status(commit_id, since)


# --------------------------------------------------------------------------------------------------- listings

_LIVE = "revision > 0 AND (gone_at IS NULL OR gone_at > :now)"
_IS: dict[Status | None, str] = {
    None: "",
    "active": "AND (idle_at IS NULL OR idle_at > :now) AND (ends_at IS NULL OR ends_at > :now)",
    "idle": "AND idle_at <= :now AND (ends_at IS NULL OR ends_at > :now)",
    "ended": "AND ends_at <= :now",
}
_FOUND = "id, revision, life, fields FROM keys INDEXED BY {index} LEFT JOIN record USING (k)"
_SCOPE = "tenant = :tenant AND kind = :kind"


class Scope(NamedTuple):
    """Which keys a listing is of."""

    tenant: str
    kind: Kind
    belongs_to: str | None
    status: Status | None

    @property
    def condition(self) -> str:
        """In SQL. Every index begins with these columns."""
        return _SCOPE + ("" if self.belongs_to is None else " AND belongs_to = :belongs_to")


def find(tx: Transaction, scope: Scope, order: Order, limit: int, cursor: Cursor | None) -> Page:
    """See `Store.find`."""
    if limit < 1:
        return Page(tx.now, [], None)
    # Left to itself, the planner walks through all that is not past its time, and sorts it.
    at = "active_at" if order == "activity" else "started_at"
    index = _INDEXES[order, scope.belongs_to is not None]
    before = "" if cursor is None else f"AND ({at}, id) < (:at, :id)"
    found = tx.named(
        f"SELECT {at}, {_FOUND.format(index=index)} WHERE {scope.condition} {before} AND {_LIVE} {_IS[scope.status]}"
        f" ORDER BY {at} DESC, id DESC LIMIT :limit",
        {**scope._asdict(), "now": tx.now, "limit": limit + 1, **(cursor._asdict() if cursor is not None else {})},
    )
    last = Cursor(found[limit - 1][0], found[limit - 1][1]) if len(found) > limit else None
    return Page(tx.now, [_found(row[1:]) for row in found[:limit]], last)


def count(tx: Transaction, scope: Scope) -> int:
    """See `Store.count`."""
    arguments = {**scope._asdict(), "now": tx.now}
    if scope.belongs_to is not None or scope.status is not None:
        index = "key_by_owner" if scope.belongs_to is not None else _COUNTED_BY[scope.status]
        sql = f"SELECT count(*) FROM keys INDEXED BY {index} WHERE {scope.condition} AND {_LIVE} {_IS[scope.status]}"
    else:
        sql = (
            "SELECT coalesce(sum(n), 0) - (SELECT count(*) FROM keys INDEXED BY key_by_end"
            f" WHERE gone_at <= :now AND {_SCOPE} AND revision > 0) FROM tally WHERE {_SCOPE}"
        )
    return int(tx.named(sql, arguments)[0][0])


def run_out(tx: Transaction, tenant: str, kind: Kind, limit: int) -> Page:
    """See `Store.run_out`."""
    found = tx.named(
        f"SELECT {_FOUND.format(index='key_by_ending')} WHERE {_SCOPE} AND ends_at <= :now AND NOT was_ended"
        f" AND {_LIVE} ORDER BY ends_at, id LIMIT :limit",
        {"tenant": tenant, "kind": kind, "now": tx.now, "limit": limit},
    )
    return Page(tx.now, [_found(row) for row in found], None)


_INDEXES = {
    ("activity", False): "key_by_activity",
    ("activity", True): "key_by_owner",
    ("start", False): "key_by_start",
    ("start", True): "key_by_owner_and_start",
}
_COUNTED_BY: dict[Status | None, str] = {"active": "key_by_idling", "idle": "key_by_idling", "ended": "key_by_ending"}


def _found(row: tuple[Any, ...]) -> Found:
    id, revision, life, fields = row
    return Found(id, rows.decode(life).row({} if fields is None else _FIELDS.decode(fields)), revision)


def scan(tx: Transaction, limit: int, cursor: bytes | None) -> Keys:
    """See `Store.scan`. Rows keep their numbers for as long as their keys live."""
    limit = max(1, limit)
    after = 0 if cursor is None else int.from_bytes(cursor)
    found = tx.all(
        "SELECT k, tenant, kind, id FROM keys WHERE k > ? AND revision > 0 AND (gone_at IS NULL OR gone_at > ?)"
        " ORDER BY k LIMIT ?",
        *(after, tx.now, limit),
    )
    keys = [Key(tenant, kind, id) for _, tenant, kind, id in found]
    return Keys(keys, found[-1][0].to_bytes(8) if len(found) == limit else None)
