"""What the tests of the Redis store share."""

from __future__ import annotations

import os
from typing import Any

from agent_sessions.stores.base import (
    CollectionChange,
    Commit,
    EntryRange,
    Key,
    LeaseWanted,
    LogChange,
    LogWanted,
    Opened,
    Part,
    Store,
    Wanted,
)
from agent_sessions.stores.lifetime import Lifetime

KEY = Key("default", "session", "s-1")
LOG = Part("openai", "items")
CART = Part("shop", "cart")
CHECKPOINTS = Part("langgraph", "checkpoints")
EVERYTHING = Wanted(logs=[LogWanted(LOG)], entries=[(CHECKPOINTS, "a")], ranges=[EntryRange(CHECKPOINTS)])


MEMBERS = 5
"""How many members a session has in an index."""


def change(ttl_ms: int | None = 600_000, **changes: Any) -> Commit:
    lifetime = Lifetime(ttl_ms=ttl_ms)
    return Commit(**{"id": os.urandom(8), "owner": "us", "expected": None, "lifetime": lifetime, **changes})


def score(shelf: int, time: int) -> int:
    """In an index (places.lua)."""
    return (shelf << 48) + time


def everything(**changes: Any) -> Commit:
    """A commit that makes a session of all sorts of parts."""
    return change(
        values={CART: b"apples"},
        logs={LOG: LogChange(append=[b"hi", b"ho"])},
        collections={CHECKPOINTS: CollectionChange(entries={"a": b"A", "b": b"B"})},
        fields={"status": b"new"},
        **changes,
    )


def lease(owner: str, *, ms: int = 30_000, queue: bool = True) -> LeaseWanted:
    return LeaseWanted(owner, ms, queue)


async def start_turn(store: Store, owner: str, *, ms: int = 30_000) -> Opened:
    while True:
        opened = await store.open(KEY, lease=lease(owner, ms=ms))
        if opened.granted:
            return opened
        await store.wait(KEY, owner, 10)
