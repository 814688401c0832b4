"""What the scripts answer, in the words of the store protocol."""

from __future__ import annotations

from typing import Any

from agent_sessions.stores.base import ABSENT, Commit, Committed, LogHead, LogRead, Version, Wanted
from agent_sessions.stores.redis import registry, scripts
from agent_sessions.stores.redis.registry import Registry


def values(
    head: scripts.Head, call: scripts.OpenCall, found: list[Any] | None, beside: list[Any]
) -> dict[str, dict[str, bytes]]:
    """The values that an open found, by itself or beside it."""
    if call.values_beside:
        return scripts.unpack_values([], scripts.pairs(beside[0])) if head.exists else {}
    if found is None:
        return {}
    namespaces, *flat = found
    return scripts.unpack_values(namespaces, scripts.pairs(flat))


def logs(
    wanted: Wanted, call: scripts.OpenCall, heads: dict[Any, LogHead], found: list[Any], beside: list[Any]
) -> list[LogRead]:
    """The logs that an open found, by itself or beside it."""
    read_beside = iter(beside[1:] if call.values_beside else beside)
    read = []
    for i, log in enumerate(wanted.logs):
        head = heads.get(log.part, LogHead(0, 0))
        continues, items = found[i]
        if i in call.logs_beside and log.limit != 0:
            items = next(read_beside)
            if not head.count:
                items = []
        read.append(LogRead(head, [item[6:] for item in items], bool(continues)))
    return read


def repeated(commit: Commit, revision: int) -> Committed:
    """A commit that was stored before."""
    previous = commit.expected if commit.expected is not None else ABSENT
    return Committed(Version(revision, commit.id), previous, None, b"", {}, repeated=True)


def declared(reply: list[Any]) -> Registry:
    """What the key has, for the next try. No version: it must not be taken for what a cache knows."""
    return registry.unpack(Version(-1, b""), b"", reply[2] or b"", reply[1])
