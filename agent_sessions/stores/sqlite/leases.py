"""Who may run a turn on a key, and who waits for it, in order of arrival."""

from __future__ import annotations

from agent_sessions.stores.base import HANDOVER_MS, Key, Lease, LeaseWanted
from agent_sessions.stores.sqlite import rows
from agent_sessions.stores.sqlite.rows import KeyRow
from agent_sessions.stores.sqlite.transaction import Transaction, Waiter

ASK_AGAIN_S = 1.0
"""How often a waiting owner shows that it is still there; well below `HANDOVER_MS`."""


def is_free_for(tx: Transaction, row: KeyRow | None, owner: str) -> bool:
    """Whether the lease is the owner's already, or free and nobody came first."""
    if row is None:
        return True
    lease = row.lease(tx.now)
    return owner == (lease.owner if lease is not None else row.first_waiter or owner)


def take(tx: Transaction, key: Key, row: KeyRow | None, wanted: LeaseWanted) -> KeyRow:
    """Take a lease that is free."""
    row = row or rows.add(tx, key)
    hold(tx, row, wanted.owner, wanted.ms)
    rows.save_lease(tx, row)
    return row


def enqueue(tx: Transaction, row: KeyRow, owner: str) -> None:
    """Take a place in the queue, or keep the one there is. Who asked in the future did so before the clock was set."""
    tx.run(
        "DELETE FROM waiter WHERE k = ? AND NOT (asked_at > ? AND asked_at <= ?)",
        *(row.k, tx.now - HANDOVER_MS, tx.now + HANDOVER_MS),
    )
    if tx.run("UPDATE waiter SET asked_at = ? WHERE k = ? AND owner = ?", tx.now, row.k, owner).rowcount:
        return
    tx.run(
        "INSERT INTO waiter (k, owner, place, asked_at)"
        " VALUES (?, ?, (SELECT coalesce(max(place), 0) + 1 FROM waiter WHERE k = ?), ?)",
        *(row.k, owner, row.k, tx.now),
    )
    row.waiters += 1


def hold(tx: Transaction, row: KeyRow, owner: str, ms: int) -> None:
    """Give the owner the lease, or a new end to the one it has. The row is not written yet."""
    if row.waiters:
        leave(tx, row, owner)
    if row.lease(tx.now) is None:
        row.lease_since = tx.now
    row.lease_owner, row.lease_until = owner, tx.now + ms


def leave(tx: Transaction, row: KeyRow, owner: str) -> None:
    """Give up a place in the queue."""
    row.waiters -= tx.run(
        "DELETE FROM waiter WHERE k = ? AND owner = ? AND asked_at > ?", row.k, owner, tx.now - HANDOVER_MS
    ).rowcount
    if row.first_waiter == owner:
        first = tx.one(
            "SELECT owner FROM waiter WHERE k = ? AND asked_at > ? ORDER BY place LIMIT 1",
            *(row.k, tx.now - HANDOVER_MS),
        )
        row.first_waiter = first[0] if first is not None else None


def hand_over(tx: Transaction, row: KeyRow) -> None:
    """Take the lease away, and reserve it for the first in the queue. The row is not written yet."""
    row.lease_owner = row.lease_since = row.lease_until = None
    first = row.first_waiter
    if first is not None:
        hold(tx, row, first, HANDOVER_MS)
        tx.handed_over.add(first)


# --------------------------------------------------------------------------------------------------- operations


def renew(tx: Transaction, key: Key, owner: str, ms: int) -> bool:
    """See `Store.renew`."""
    row = rows.load(tx, key)
    if row is None:
        return False
    lease = row.lease(tx.now)
    if lease is None or lease.owner != owner:
        return False
    hold(tx, row, owner, ms)
    stamps = row.life.stamps
    if row.is_alive(tx.now):
        row.life.prolong(tx.now + ms)
    if row.life.stamps == stamps:
        rows.save_lease(tx, row)
    else:
        rows.save(tx, row)
    return True


def release(tx: Transaction, key: Key, owner: str) -> None:
    """See `Store.release`."""
    row = rows.load(tx, key)
    if row is None:
        return
    if row.waiters:
        leave(tx, row, owner)
    lease = row.lease(tx.now)
    if lease is None or lease.owner == owner:
        hand_over(tx, row)
        rows.save_lease(tx, row)


def unlock(tx: Transaction, key: Key) -> Lease | None:
    """See `Store.unlock`."""
    row = rows.load(tx, key)
    lease = row.lease(tx.now) if row is not None else None
    if row is not None and lease is not None:
        hand_over(tx, row)
        rows.save_lease(tx, row)
    return lease


# --------------------------------------------------------------------------------------------------- waiting


def wait(tx: Transaction, waiter: Waiter) -> float:
    """For how many seconds an owner has to wait before it should ask again, if nobody wakes it before."""
    row = rows.load(tx, waiter.key)
    if row is None or is_free_for(tx, row, waiter.owner) or not _place_lasts(tx, row, waiter.owner):
        return 0.0
    tx.waiting.append(waiter)
    lease = row.lease(tx.now)
    if lease is None:  # somebody else is first, and may be dead
        pause = _place_lasts(tx, row, row.first_waiter)
    elif row.first_waiter == waiter.owner:
        pause = lease.until - tx.now
    else:
        return ASK_AGAIN_S
    return min(ASK_AGAIN_S, pause / 1000)


def is_next(tx: Transaction, waiter: Waiter) -> bool:
    """Whether it is an owner's turn by now."""
    return is_free_for(tx, rows.load(tx, waiter.key), waiter.owner)


def _place_lasts(tx: Transaction, row: KeyRow, owner: str | None) -> int:
    """For how many ms an owner keeps its place in the queue without asking again; 0 if it has none."""
    found = tx.one("SELECT asked_at FROM waiter WHERE k = ? AND owner = ?", row.k, owner)
    return max(0, int(found[0]) + HANDOVER_MS - tx.now) if found is not None else 0
