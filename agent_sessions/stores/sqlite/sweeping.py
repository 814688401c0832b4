"""Removing what is past its time, a little at a time: nothing waits for it, and it keeps no turn waiting for long."""

from __future__ import annotations

import sqlite3
import time
from itertools import accumulate

from agent_sessions.stores.base import HANDOVER_MS, Key
from agent_sessions.stores.sqlite import rows
from agent_sessions.stores.sqlite.reading import Log
from agent_sessions.stores.sqlite.transaction import Transaction

EVERY_S = 60.0
SOON_S = 0.05
"""The pause before the next sweep, and before the next step of one that is not at its end."""

AT_THE_END_S = 1.0
"""So long it takes at most to sweep, before the file is closed, what was deleted just now."""

_STEP_S = 0.002
_KEYS_AT_ONCE = 24
_ROWS_AT_ONCE = 16
_BYTES_AT_ONCE = 65_536
_PAGES_AT_ONCE = 48
_FREE_PAGES = 256
"""Free pages that stay in the file, for what is written next."""


def sweep(tx: Transaction) -> bool:
    """Do one step, of a few milliseconds. True: there is more to do."""
    tx.run("DELETE FROM deletion WHERE until <= ?", tx.now)
    due = tx.all(
        "SELECT k, revision, tenant, kind, id FROM keys INDEXED BY key_by_end WHERE gone_at <= ?"
        " AND (lease_until IS NULL OR lease_until <= ?)"
        " AND NOT EXISTS (SELECT 1 FROM waiter WHERE waiter.k = keys.k AND asked_at > ?) LIMIT ?",
        *(tx.now, tx.now, tx.now - HANDOVER_MS, _KEYS_AT_ONCE),
    )
    for k, revision, *address in due:
        if revision > 0:
            rows.bury(tx, Key(*address), k)
        else:
            rows.drop(tx, k)
    emptied = _empty_graves(tx)
    return len(due) == _KEYS_AT_ONCE or not emptied


def _empty_graves(tx: Transaction) -> bool:
    """Remove parts of dead keys until the time of the step is over. True: there are none left."""
    end = time.monotonic() + _STEP_S
    while (dead := tx.one("SELECT k FROM dead LIMIT 1")) is not None:
        while _remove_some(tx, dead[0]):
            if time.monotonic() >= end:
                return False
        tx.run("DELETE FROM dead WHERE k = ?", dead[0])
    return True


def _remove_some(tx: Transaction, k: int) -> bool:
    """Remove a few rows of a dead key's parts. False: there are none."""
    if _remove_rows(tx, "value", "k = ?", k):
        return True
    part = tx.one("SELECT p, sort FROM part WHERE k = ? LIMIT 1", k)
    if part is None:
        tx.run("DELETE FROM waiter WHERE k = ?", k)
        return False
    p, sort = part
    if sort == "l":
        removed = _remove_rows(tx, "item", "n BETWEEN ? AND ?", Log(p).n(0), Log(p + 1).n(0) - 1)
    else:
        removed = _remove_rows(tx, "entry", "p = ?", p)
    if not removed:
        tx.run("DELETE FROM part WHERE p = ?", p)
    return True


def _remove_rows(tx: Transaction, table: str, which: str, *arguments: int) -> bool:
    """Remove a few of these rows, or a single large one. False: there are none."""
    found = tx.all(f"SELECT rowid, length(data) FROM {table} WHERE {which} LIMIT ?", *arguments, _ROWS_AT_ONCE)
    ends = accumulate(size for _, size in found)
    some = [(row,) for (row, size), end in zip(found, ends, strict=True) if end - size < _BYTES_AT_ONCE]
    tx.run_each(f"DELETE FROM {table} WHERE rowid = ?", some)
    return bool(found)


def shrink(connection: sqlite3.Connection) -> bool:
    """Give a few free pages at the end of the file back. True: there are more."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free <= _FREE_PAGES:
        return False
    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")  # `execute` would free a single page
    return True
