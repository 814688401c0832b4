"""What the tests of the SQLite store share: turns on it, and a look at its file from outside."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from agent_sessions.stores.base import Commit, Key, LeaseWanted, LogChange, LogWanted, Part, Store, Wanted
from agent_sessions.stores.lifetime import Lifetime

KEY = Key("default", "session", "s-1")
CART = Part("shop", "cart")
LOG = Part("openai", "items")
CHECKPOINTS = Part("langgraph", "checkpoints")


def change(*, ttl_ms: int | None = None, **changes: Any) -> Commit:
    lifetime = Lifetime(ttl_ms=ttl_ms)
    return Commit(**{"id": os.urandom(8), "owner": "us", "expected": None, "lifetime": lifetime, **changes})


def append(*items: bytes) -> dict[Part, LogChange]:
    return {LOG: LogChange(append=list(items))}


async def take(store: Store, key: Key, owner: str, *, ms: int = 30_000, queue: bool = False) -> bool:
    return (await store.open(key, lease=LeaseWanted(owner, ms, queue))).granted


async def read_log(store: Store, key: Key, *, limit: int | None = None) -> list[bytes]:
    opened = await store.open(key, wanted=Wanted(values=False, logs=[LogWanted(LOG, limit)]))
    return opened.logs[0].items if opened.row is not None else []


async def read_values(store: Store, key: Key) -> dict[Part, bytes]:
    opened = await store.open(key)
    return {Part(namespace, name): data for namespace, named in opened.values.items() for name, data in named.items()}


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What another program finds in the file, or does to it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        return file.execute(sql).fetchall()


def beside(path: Path) -> list[str]:
    """The files in its folder."""
    return sorted(file.name for file in path.parent.iterdir())


def size(path: Path) -> int:
    return path.stat().st_size


def content(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, text: bytes, *, at: int = 0) -> None:
    """Write over what is there."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(at)
        file.write(text)
