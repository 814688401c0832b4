"""Opening the file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading

from agent_sessions.stores.sqlite import schema

_PRAGMAS = (
    "PRAGMA cache_size = -16384",  # KiB
    "PRAGMA journal_size_limit = 16777216",  # bytes of the -wal file that stay after a large commit
    "PRAGMA secure_delete = ON",  # what is deleted is written over
    "PRAGMA trusted_schema = OFF",
)

_making = threading.Lock()


def identity(path: str) -> tuple[int, int] | None:
    """Which file is at a path: another one, if it was removed and made again. None: there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def connect(path: str) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
    """Open the file, and say which it is.

    It is made if it is not there, for its owner alone, and brought to the version of this library. Locks are not
    waited for: `sqlite3.OperationalError` says when one is in the way.
    """
    _make(path)
    file = identity(path)  # before it is opened: if it is replaced meanwhile, that is seen at the next look
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        schema.prepare(connection, path)
        for pragma in _PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        raise
    return connection, file


def _make(path: str) -> None:
    """Make the file, empty, if there is none. SQLite gives its -wal and -shm files the same permissions.

    It is never opened here if it exists: closing it would take away the locks that SQLite has on it in this process.
    That is also why only one thread at a time makes files.
    """
    with _making, contextlib.suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
