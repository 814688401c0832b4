"""The row of a key: where it stands, and who holds it."""

from __future__ import annotations

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from agent_sessions.errors import FormatTooNewError
from agent_sessions.stores.base import FORMAT, HANDOVER_MS, Key, Lease
from agent_sessions.stores.life import Life
from agent_sessions.stores.lifetime import Course, Lifetime, Stamps
from agent_sessions.stores.sqlite.transaction import Transaction

decode = Decoder(Life).decode
_ENCODER = Encoder()


class KeyRow(Struct):
    """A row of `keys`. A key is alive, or its row is one of a key past its time, or no more than a lease."""

    k: int
    revision: int
    commit_ids: bytes
    life: Life
    lease_owner: str | None = None
    lease_since: int | None = None
    lease_until: int | None = None
    waiters: int = 0
    """Those that are still asking."""
    first_waiter: str | None = None

    def is_alive(self, now: int) -> bool:
        """Whether the key exists."""
        return self.revision > 0 and not self.life.is_over(now)

    def lease(self, now: int) -> Lease | None:
        """The live lease."""
        if self.lease_owner is None or self.lease_since is None or self.lease_until is None or self.lease_until <= now:
            return None
        return Lease(self.lease_owner, self.lease_since, self.lease_until)


def load(tx: Transaction, key: Key) -> KeyRow | None:
    """The row of a key, if there is one.

    Raises:
        FormatTooNewError: A later version of agent-sessions has written the key.
    """
    asking = tx.now - HANDOVER_MS
    found = tx.one(
        "SELECT k, format, revision, commit_ids, life,"
        " lease_owner, lease_since, lease_until,"
        " (SELECT count(*) FROM waiter WHERE waiter.k = keys.k AND asked_at > ?),"
        " (SELECT owner FROM waiter WHERE waiter.k = keys.k AND asked_at > ? ORDER BY place LIMIT 1)"
        " FROM keys WHERE tenant = ? AND kind = ? AND id = ?",
        *(asking, asking, *key),
    )
    if found is None:
        return None
    k, format, revision, commit_ids, life, *rest = found
    if format > FORMAT:
        raise FormatTooNewError(
            f"{key.kind} {key.id!r} has format {format}, this version of agent-sessions reads up to {FORMAT}"
        )
    return KeyRow(k, revision, commit_ids, decode(life), *rest)


def add(tx: Transaction, key: Key) -> KeyRow:
    """A row for an absent key that has none."""
    nothing = Life(Course(tx.now, tx.now), Stamps(None, None, tx.now), Lifetime(), {}, b"")
    k = tx.run(
        "INSERT INTO keys (tenant, kind, id, format, revision, commit_ids, life, started_at, active_at, gone_at,"
        " was_ended) VALUES (?, ?, ?, ?, 0, x'', ?, ?, ?, ?, 0)",
        *(*key, FORMAT, _ENCODER.encode(nothing), tx.now, tx.now, tx.now),
    ).lastrowid
    assert k is not None
    return KeyRow(k, 0, b"", nothing)


def replace(tx: Transaction, key: Key, row: KeyRow) -> KeyRow:
    """Bury what a row is of: a new one, of an absent key, takes over the lease and those who wait for it."""
    bury(tx, key, row.k)
    fresh = add(tx, key)
    fresh.lease_owner, fresh.lease_since, fresh.lease_until = row.lease_owner, row.lease_since, row.lease_until
    fresh.waiters, fresh.first_waiter = row.waiters, row.first_waiter
    tx.run("UPDATE waiter SET k = ? WHERE k = ?", fresh.k, row.k)
    return fresh


def bury(tx: Transaction, key: Key, k: int) -> None:
    """Take the row of a stored key away. Its parts are out of reach from then on, and swept later."""
    tx.run("DELETE FROM keys WHERE k = ?", k)
    tx.run("DELETE FROM record WHERE k = ?", k)
    tx.run("INSERT INTO dead VALUES (?)", k)
    tx.buried = True
    tally(tx, key, -1)


def drop(tx: Transaction, k: int) -> None:
    """Take a row away that was no more than a lease."""
    tx.run("DELETE FROM keys WHERE k = ?", k)
    tx.run("DELETE FROM waiter WHERE k = ?", k)


def tally(tx: Transaction, key: Key, change: int) -> None:
    """Count a key that came, or went."""
    if not tx.run("UPDATE tally SET n = n + ? WHERE tenant = ? AND kind = ?", change, key.tenant, key.kind).rowcount:
        tx.run("INSERT INTO tally VALUES (?, ?, ?)", key.tenant, key.kind, change)


def save(tx: Transaction, row: KeyRow) -> None:
    """Write everything that a commit or an amendment may change."""
    life = row.life
    tx.run(
        "UPDATE keys SET revision = ?, commit_ids = ?, life = ?, started_at = ?, active_at = ?, idle_at = ?,"
        " ends_at = ?, gone_at = ?, was_ended = ?, belongs_to = ?, lease_owner = ?, lease_since = ?, lease_until = ?"
        " WHERE k = ?",
        *(row.revision, row.commit_ids, _ENCODER.encode(life), *life.course[:2], *life.stamps),
        *(life.course.ended_at is not None, life.belongs_to),
        *(row.lease_owner, row.lease_since, row.lease_until, row.k),
    )


def save_lease(tx: Transaction, row: KeyRow) -> None:
    """Write the lease; a row that was no more than a lease goes with it."""
    lease = (row.lease_owner, row.lease_since, row.lease_until)
    if row.revision > 0:
        tx.run("UPDATE keys SET lease_owner = ?, lease_since = ?, lease_until = ? WHERE k = ?", *lease, row.k)
    elif row.lease_until is None:
        drop(tx, row.k)
    else:
        tx.run(
            "UPDATE keys SET lease_owner = ?, lease_since = ?, lease_until = ?, gone_at = ? WHERE k = ?",
            *(*lease, row.lease_until, row.k),
        )
