"""The tables, and how a file of an earlier version becomes one of this version.

A key has one row in `keys`. Its parts hang on the number `k` of that row, which is never used again: so a key is
deleted by taking the row away and entering `k` among the `dead`, whose parts the sweep removes little by little.
"""

from __future__ import annotations

import sqlite3

from agent_sessions.errors import FormatTooNewError, StoreUnavailableError

APPLICATION_ID = 0x616B7365
"""Stands in the file's header and says whose it is ("akse")."""

_VERSION_1 = """
CREATE TABLE keys (
    k INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
    format INTEGER NOT NULL,
    revision INTEGER NOT NULL,      -- 0: the key is absent, and the row no more than a lease on it
    commit_ids BLOB NOT NULL,       -- those of the last 64 commits, 8 bytes each
    life BLOB NOT NULL,             -- `stores.life.Life` as MessagePack; the columns up to `belongs_to` repeat of it
    started_at INTEGER NOT NULL, active_at INTEGER NOT NULL, -- what is looked for
    idle_at INTEGER, ends_at INTEGER, gone_at INTEGER,
    was_ended INTEGER NOT NULL,
    belongs_to TEXT,
    lease_owner TEXT, lease_since INTEGER, lease_until INTEGER
);
CREATE UNIQUE INDEX key_by_address ON keys (tenant, kind, id);
CREATE INDEX key_by_activity ON keys (tenant, kind, active_at, id, gone_at, idle_at, ends_at) WHERE revision > 0;
CREATE INDEX key_by_start ON keys (tenant, kind, started_at, id, gone_at, idle_at, ends_at) WHERE revision > 0;
CREATE INDEX key_by_owner ON keys (tenant, kind, belongs_to, active_at, id, gone_at, idle_at, ends_at)
    WHERE revision > 0 AND belongs_to IS NOT NULL;
CREATE INDEX key_by_owner_and_start ON keys (tenant, kind, belongs_to, started_at, id, gone_at, idle_at, ends_at)
    WHERE revision > 0 AND belongs_to IS NOT NULL;
CREATE INDEX key_by_idling ON keys (tenant, kind, idle_at, ends_at, gone_at) WHERE revision > 0;
CREATE INDEX key_by_ending ON keys (tenant, kind, ends_at, id, was_ended, gone_at)
    WHERE revision > 0 AND ends_at IS NOT NULL;
CREATE INDEX key_by_end ON keys (gone_at, tenant, kind, revision) WHERE gone_at IS NOT NULL;

-- How many rows of `keys` with a revision there are, those past their time included that were not swept yet.
CREATE TABLE tally (tenant TEXT, kind TEXT, n INTEGER NOT NULL, PRIMARY KEY (tenant, kind)) WITHOUT ROWID;

-- The record's fields, apart from `keys`, whose rows change with every lease.
CREATE TABLE record (k INTEGER PRIMARY KEY, fields BLOB NOT NULL);

-- Who waits for a lease.
CREATE TABLE waiter (
    k INTEGER, owner TEXT, place INTEGER NOT NULL, asked_at INTEGER NOT NULL, PRIMARY KEY (k, owner)
) WITHOUT ROWID;

-- Logs (sort 'l'), collections ('c') and namespaces with values ('v', without a name), each with the revision that
-- changed it last. Of a log: its length, the number of its last item, and the last number that was ever given.
CREATE TABLE part (
    p INTEGER PRIMARY KEY AUTOINCREMENT,
    k INTEGER NOT NULL, sort TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    count INTEGER NOT NULL DEFAULT 0, last INTEGER NOT NULL DEFAULT 0, assigned INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX part_by_name ON part (k, sort, namespace, name);

-- Not WITHOUT ROWID, as the small tables are: there, looking for a row reads every row on the way with all its data.
CREATE TABLE value (k INTEGER, namespace TEXT, name TEXT, data BLOB NOT NULL, PRIMARY KEY (k, namespace, name));
CREATE TABLE entry (p INTEGER, key BLOB, data BLOB NOT NULL, PRIMARY KEY (p, key));
-- n is p << 28 | the item's number; place counts from 1.
CREATE TABLE item (n INTEGER PRIMARY KEY, place INTEGER NOT NULL, data BLOB NOT NULL);

-- Keys that are gone, and whose parts are still there.
CREATE TABLE dead (k INTEGER PRIMARY KEY);

-- How deletes were answered, for those who repeat them.
CREATE TABLE deletion (
    tenant TEXT, kind TEXT, id TEXT, write_id BLOB, existed INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind, id, write_id)
) WITHOUT ROWID;
CREATE INDEX deletion_by_end ON deletion (until);
"""

MIGRATIONS = (_VERSION_1,)
"""What makes a file of each version out of one of the version before."""


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Bring a file, which may be empty, to this version. It is done by whichever process comes first.

    Raises:
        FormatTooNewError: A later version of agent-sessions made it. Nothing is changed.
        StoreUnavailableError: It is the database of another application.
    """
    is_old = _version(connection, path) < len(MIGRATIONS)
    if is_old:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before anything is written: later it has no effect
    connection.execute("PRAGMA journal_mode = WAL").fetchone()  # a copy made by VACUUM INTO, for one, has lost it
    if is_old:
        connection.execute("BEGIN IMMEDIATE")
        for script in MIGRATIONS[_version(connection, path) :]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")


def check_version(connection: sqlite3.Connection, path: str) -> None:
    """Raise if another process has brought the file to a later version meanwhile."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise _too_new(path, version)


def _version(connection: sqlite3.Connection, path: str) -> int:
    """The version of the file; 0 if it is empty."""
    application, version, tables = connection.execute(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),"
        " (SELECT count(*) FROM sqlite_master)"
    ).fetchone()
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise StoreUnavailableError(
            f"{path} is the database of another application, and stays as it is. Name a file of its own for sessions"
            " in AK_SESSION__SQLITE__PATH.",
            maybe_done=False,
        )
    if version > len(MIGRATIONS):
        raise _too_new(path, version)
    return int(version)


def _too_new(path: str, version: int) -> FormatTooNewError:
    return FormatTooNewError(
        f"{path} has the layout {version} of a later version of agent-sessions; this one reads up to {len(MIGRATIONS)}."
        " Upgrade agent-sessions here, or name another file in AK_SESSION__SQLITE__PATH."
    )


def _statements(script: str) -> list[str]:
    """The statements one by one: `executescript` would commit before the first."""
    statements, begun = [], ""
    for piece in script.rstrip().removesuffix(";").split(";"):
        begun += f"{piece};"
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements
