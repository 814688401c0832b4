"""What SQLite's errors mean, and what to do about them."""

from __future__ import annotations

import os
import sqlite3

from agent_sessions.errors import StoreUnavailableError

_PRIMARY = 0xFF
"""The lower byte of an extended error code is the plain one."""


def code_of(error: sqlite3.Error) -> int:
    """The plain error code, 0 if SQLite gave none. No room for what processes share is a full disk, too."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return sqlite3.SQLITE_FULL if code == sqlite3.SQLITE_IOERR_SHMSIZE else code & _PRIMARY


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another process, or another connection, is in the way for the moment."""
    return code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_harmless(error: sqlite3.Error) -> bool:
    """Whether the connection is as good as before."""
    return is_locked(error) or code_of(error) == sqlite3.SQLITE_FULL


def locked(path: str, seconds: float) -> StoreUnavailableError:
    """It was locked for all the time there was."""
    return StoreUnavailableError(
        f"{path} was locked by another process for {seconds:.0f} s; nothing was stored. Look for a program that keeps a"
        " transaction open on it (a sqlite3 shell, a backup, a process that was stopped): `fuser` or `lsof` with the"
        " file's name shows who has it open.",
        maybe_done=False,
    )


def silent(path: str, seconds: float) -> StoreUnavailableError:
    """The disk did not answer."""
    return StoreUnavailableError(f"{path}: no answer from the disk within {seconds:.0f} s")


def unavailable(path: str, error: sqlite3.Error | OSError) -> StoreUnavailableError:
    """The error of an operation. Its transaction was rolled back; of one that failed while it was written, ask."""
    if isinstance(error, OSError):
        return StoreUnavailableError(_cannot_open(path, error.strerror or type(error).__name__), maybe_done=False)
    code = code_of(error)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    reasons = {
        sqlite3.SQLITE_FULL: f"the disk of {path} is full, or the file may not grow; nothing was stored. Make room: no"
        " restart is needed.",
        sqlite3.SQLITE_NOTADB: f"{path} is not an SQLite database, and stays as it is. Name another file in"
        " AK_SESSION__SQLITE__PATH.",
        sqlite3.SQLITE_CORRUPT: f"{path} is damaged. Stop everything that uses it, keep a copy with its -wal file, and"
        " bring a backup back, or save what can be read: sqlite3 FILE .recover",
        sqlite3.SQLITE_READONLY: f"{path} can't be written: it, its -wal or -shm file, or its folder is read-only or"
        " belongs to somebody else.",
    }
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreUnavailableError(_cannot_open(path, name), maybe_done=False)
    if code in reasons:
        return StoreUnavailableError(reasons[code], maybe_done=False)
    return StoreUnavailableError(
        f"{path} could not be read or written ({name})", maybe_done=code == sqlite3.SQLITE_IOERR
    )


def _cannot_open(path: str, reason: str) -> str:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"{path} can't be opened: there is no folder {folder}. Make it, or set AK_SESSION__SQLITE__PATH."
    if os.path.isdir(path):
        return f"{path} is a folder. Name a file in AK_SESSION__SQLITE__PATH."
    return (
        f"{path} can't be opened ({reason}). The user of this process must be able to read and write it, and to make"
        f" files in {folder}."
    )
