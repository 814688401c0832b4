"""What changes a key: commits and deletes. Every check comes before the first write, as far as it can."""

from __future__ import annotations

import msgspec

from agent_sessions.errors import (
    SessionBusyError,
    SessionNotFoundError,
)
from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    Amended,
    CollectionChange,
    Commit,
    Committed,
    Key,
    LogChange,
    LogHead,
    Part,
    Version,
)
from agent_sessions.stores.commit_ring import CommitRing, overtaken
from agent_sessions.stores.life import Life
from agent_sessions.stores.sqlite import leases, rows
from agent_sessions.stores.sqlite.reading import Log, prefix_bounds, read_fields
from agent_sessions.stores.sqlite.rows import KeyRow
from agent_sessions.stores.sqlite.transaction import Transaction

DELETES_REMEMBERED_MS = 60_000
"""How long a repeated delete is answered as before."""


def commit(tx: Transaction, key: Key, commit: Commit) -> Committed:
    """See `Store.commit`."""
    row = rows.load(tx, key)
    alive = row is not None and row.is_alive(tx.now)
    ring = CommitRing(row.commit_ids, row.revision) if row is not None and alive else CommitRing()
    if (revision := ring.find(commit.id)) is not None:
        return Committed(Version(revision, commit.id), ABSENT, None, b"", {}, repeated=True)
    _check(tx, key, commit, row, ring.version)
    previous = ring.version
    ring.add(commit.id)
    if row is None or not alive:
        row = _begin_life(tx, key, row)
        row.life = Life.begun(commit, tx.now)
    previous_tag = row.life.record_tag
    row.revision, row.commit_ids = ring.revision, ring.ids
    row.life.commit(commit, tx.now)
    if commit.fields:
        _change_fields(tx, row.k, commit.fields)
    _change_values(tx, row, commit.values)
    heads = {part: _change_log(tx, row, part, change) for part, change in commit.logs.items()}
    for part, changed in commit.collections.items():
        _change_collection(tx, row, part, changed)
    if commit.hold_ms is None:
        leases.hand_over(tx, row)
    else:
        leases.hold(tx, row, commit.owner, commit.hold_ms)
    rows.save(tx, row)
    return Committed(ring.version, previous, row.life.row(None), previous_tag, heads)


def amend(tx: Transaction, key: Key, amend: Amend) -> Amended:
    """See `Store.amend`."""
    row = rows.load(tx, key)
    if row is None or not row.is_alive(tx.now):
        raise _not_found(key)
    changed = row.life.amend(amend, tx.now, _name(key))
    if changed:
        lease = row.lease(tx.now)
        if lease is not None:
            row.life.prolong(lease.until)
        rows.save(tx, row)
    if changed and amend.fields:
        _change_fields(tx, row.k, amend.fields)
    return Amended(tx.now, row.life.row(read_fields(tx, row.k)), changed, row.revision)


def delete(tx: Transaction, key: Key, write_id: bytes) -> bool:
    """See `Store.delete`. The lease goes with the key; the next waiter gets one on what is absent then."""
    done = tx.one(
        "SELECT existed FROM deletion WHERE tenant = ? AND kind = ? AND id = ? AND write_id = ? AND until > ?",
        *(*key, write_id, tx.now),
    )
    if done is not None:
        return bool(done[0])
    row = rows.load(tx, key)
    existed = row is not None and row.is_alive(tx.now)
    if row is not None and existed:
        fresh = rows.replace(tx, key, row)
        leases.hand_over(tx, fresh)
        rows.save_lease(tx, fresh)
    tx.run(
        "INSERT OR REPLACE INTO deletion VALUES (?, ?, ?, ?, ?, ?)",
        *(*key, write_id, existed, tx.now + DELETES_REMEMBERED_MS),
    )
    return existed


def _check(tx: Transaction, key: Key, commit: Commit, row: KeyRow | None, version: Version) -> None:
    """Raise what keeps a commit that is not stored yet from being stored."""
    expected, lease = commit.expected, row.lease(tx.now) if row is not None else None
    if version == ABSENT and expected is not None and expected != ABSENT:
        raise _not_found(key)
    if version != ABSENT and row is not None and not commit.maintenance:
        row.life.refuse_ended(tx.now, _name(key))
    if expected is not None and expected != version:
        raise overtaken(f"{key.kind} {key.id!r}", commit, version.revision)
    if lease is not None and lease.owner != commit.owner:
        raise SessionBusyError(f"{key.kind} {key.id!r} is held by {lease.owner} for another {lease.until - tx.now} ms")


def _name(key: Key) -> str:
    return f"{key.kind} {key.id!r}"


def _not_found(key: Key) -> SessionNotFoundError:
    return SessionNotFoundError(f"{_name(key)} does not exist, was deleted, or is past its time")


def _begin_life(tx: Transaction, key: Key, row: KeyRow | None) -> KeyRow:
    """The row of a key that is made, or made again: the one of a lease on it, or a new one."""
    if row is None:
        row = rows.add(tx, key)
    elif row.revision > 0:
        row = rows.replace(tx, key, row)
    rows.tally(tx, key, 1)
    return row


def _change_fields(tx: Transaction, k: int, changes: dict[str, bytes | None]) -> None:
    fields: dict[str, bytes | None] = {**read_fields(tx, k), **changes}
    kept = {name: data for name, data in fields.items() if data is not None}
    tx.run("INSERT OR REPLACE INTO record VALUES (?, ?)", k, msgspec.msgpack.encode(kept))


def _change_values(tx: Transaction, row: KeyRow, values: dict[Part, bytes | None]) -> None:
    for namespace in {part.namespace for part in values}:
        _touch_part(tx, row, "v", Part(namespace, ""))
    tx.run_each(
        "INSERT INTO value VALUES (?, ?, ?, ?) ON CONFLICT (k, namespace, name) DO UPDATE SET data = excluded.data",
        [(row.k, *part, data) for part, data in values.items() if data is not None],
    )
    tx.run_each(
        "DELETE FROM value WHERE k = ? AND namespace = ? AND name = ?",
        [(row.k, *part) for part, data in values.items() if data is None],
    )


def _change_log(tx: Transaction, row: KeyRow, part: Part, change: LogChange) -> LogHead:
    found = tx.one(
        "SELECT p, count, last, assigned FROM part WHERE k = ? AND sort = 'l' AND namespace = ? AND name = ?",
        *(row.k, *part),
    )
    log = Log(*found) if found is not None else Log(_touch_part(tx, row, "l", part))
    if change.clear or change.pop >= log.count > 0:
        tx.run("DELETE FROM item WHERE n BETWEEN ? AND ?", log.n(1), log.n(log.last))
        log.count = log.last = 0
    elif change.pop and log.count:
        _pop(tx, log, change.pop)
    if change.append:
        tx.run_each(
            "INSERT INTO item VALUES (?, ?, ?)",
            [(log.n(log.assigned + i), log.count + i, data) for i, data in enumerate(change.append, start=1)],
        )
        log.assigned += len(change.append)
        log.count, log.last = log.count + len(change.append), log.assigned
    tx.run(
        "UPDATE part SET revision = ?, count = ?, last = ?, assigned = ? WHERE p = ?",
        *(row.revision, log.count, log.last, log.assigned, log.p),
    )
    return log.head


def _pop(tx: Transaction, log: Log, number: int) -> None:
    """Take fewer items than there are off the end."""
    log.count -= number
    last = tx.one(
        "SELECT n FROM item WHERE n BETWEEN ? AND ? ORDER BY n DESC LIMIT 1 OFFSET ?",
        *(log.n(1), log.n(log.last), number),
    )
    remaining = last[0] if last is not None else log.n(0)
    tx.run("DELETE FROM item WHERE n > ? AND n <= ?", remaining, log.n(log.last))
    log.last = remaining - log.n(0)


def _change_collection(tx: Transaction, row: KeyRow, part: Part, change: CollectionChange) -> None:
    p = _touch_part(tx, row, "c", part)
    for prefix in change.delete_prefixes:
        tx.run("DELETE FROM entry WHERE p = ? AND key >= ? AND key < ?", p, *prefix_bounds(prefix))
    put = [(p, name.encode(), data) for name, data in change.entries.items() if data is not None]
    tx.run_each("INSERT INTO entry VALUES (?, ?, ?) ON CONFLICT (p, key) DO UPDATE SET data = excluded.data", put)
    tx.run_each(
        "DELETE FROM entry WHERE p = ? AND key = ?",
        [(p, name.encode()) for name, data in change.entries.items() if data is None],
    )
    if not put and tx.one("SELECT 1 FROM entry WHERE p = ? LIMIT 1", p) is None:
        tx.run("DELETE FROM part WHERE p = ?", p)


def _touch_part(tx: Transaction, row: KeyRow, sort: str, part: Part) -> int:
    """The number of a part, which is entered if it is new, and changes with this revision."""
    found = tx.one("SELECT p FROM part WHERE k = ? AND sort = ? AND namespace = ? AND name = ?", row.k, sort, *part)
    if found is not None:
        tx.run("UPDATE part SET revision = ? WHERE p = ?", row.revision, found[0])
        return int(found[0])
    number = tx.run(
        "INSERT INTO part (k, sort, namespace, name, revision) VALUES (?, ?, ?, ?, ?)",
        *(row.k, sort, *part, row.revision),
    ).lastrowid
    assert number is not None
    return number
