"""What a store holds, as it holds it: to look for what should not be there any more."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from agent_sessions import MemoryStore
from tests.dynamodb import DynamoDB


def of_memory(store: MemoryStore) -> bytes:
    """Everything that can be reached from the store."""
    seen: dict[int, Any] = {}

    def walk(thing: Any) -> Iterator[bytes]:
        if id(thing) in seen:
            return
        seen[id(thing)] = thing  # kept: no other thing gets its id
        if isinstance(thing, str):
            yield thing.encode()
        elif isinstance(thing, bytes | bytearray):
            yield bytes(thing)
        elif isinstance(thing, dict):
            for pair in thing.items():
                yield from walk(pair)
        elif isinstance(thing, list | tuple | set | frozenset):
            for part in thing:
                yield from walk(part)
        elif type(thing).__module__.startswith("agent_sessions"):
            names = {*getattr(thing, "__dict__", ()), *getattr(thing, "__struct_fields__", ())}
            names.update(name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ()))
            for name in names:
                yield from walk(getattr(thing, name, None))

    return b"\n".join(walk(store))


def of_sqlite(path: Path) -> bytes:
    """The file, and what is in the log beside it after a checkpoint."""
    with closing(sqlite3.connect(path)) as file, suppress(sqlite3.OperationalError):
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return b"".join(part.read_bytes() for part in path.parent.glob(f"{path.name}*"))


def of_redis(url: str) -> bytes:
    """Every key of a server, with what is in it."""
    import redis

    reads: dict[bytes, Any] = {
        b"string": lambda server, key: [server.get(key)],
        b"hash": lambda server, key: [part for pair in server.hgetall(key).items() for part in pair],
        b"list": lambda server, key: server.lrange(key, 0, -1),
        b"zset": lambda server, key: server.zrange(key, 0, -1),
        b"set": lambda server, key: server.smembers(key),
    }
    with redis.Redis.from_url(url) as server:
        parts: list[bytes] = []
        for key in server.scan_iter(count=1000):
            parts += [key, *(part or b"" for part in reads.get(server.type(key), lambda *_: [])(server, key))]
        return b"\n".join(parts)


def of_dynamodb(table: DynamoDB) -> bytes:
    """Every item of a table."""
    found, start = [], dict[str, Any]()
    while True:
        page = table.request("Scan", ConsistentRead=True, **start)
        found += list(_texts(page["Items"]))
        if "LastEvaluatedKey" not in page:
            return b"\n".join(found)
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


def _texts(item: Any) -> Iterator[bytes]:
    if isinstance(item, dict):
        if isinstance(binary := item.get("B"), str):
            yield base64.b64decode(binary)
        for part in item.values():
            yield from _texts(part)
    elif isinstance(item, list):
        for part in item:
            yield from _texts(part)
    else:
        yield json.dumps(item, ensure_ascii=False).encode()
