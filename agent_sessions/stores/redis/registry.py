"""The registry: what a key has, as the scripts keep it in the main hash (`common.lua`)."""

from __future__ import annotations

import threading

from msgspec import Struct

from agent_sessions.stores.base import LogHead, Part, Version
from agent_sessions.stores.redis.keys import part_of

_NUMBERS = 18

_Entries = dict[bytes, tuple[int, int, int]]


class Registry(Struct, frozen=True):
    """What a key has, at one version: what its next commit must declare, and what need not be sent again."""

    version: Version
    life: bytes
    """As it is stored."""
    belongs_to: bytes
    logs: _Entries
    """Count, last and highest number given, by part id."""
    collections: _Entries
    """Entries and revision, by part id."""
    namespaces: _Entries
    """Values and revision, by escaped namespace."""

    @property
    def has_values(self) -> bool:
        """Whether there are any values."""
        return any(count for count, _, _ in self.namespaces.values())

    def heads(self) -> dict[Part, LogHead]:
        """Where the logs stand."""
        return {part_of(id): LogHead(count, last) for id, (count, last, _) in self.logs.items()}

    def revisions(self) -> dict[Part, int]:
        """When the collections that have entries changed last."""
        return {part_of(id): revision for id, (count, revision, _) in self.collections.items() if count}

    def after(self, version: Version, life: bytes, belongs_to: bytes, changed: bytes) -> Registry:
        """The registry after a commit on it."""
        logs, collections, namespaces = _parse(changed)
        return Registry(
            version,
            life,
            belongs_to,
            self.logs | logs,
            self.collections | collections,
            self.namespaces | namespaces,
        )


class Registries:
    """Those of recent keys, by the name of the main key."""

    KEPT = 1024

    def __init__(self) -> None:
        self._kept: dict[bytes, Registry] = {}
        self._lock = threading.Lock()

    def get(self, main: bytes) -> Registry | None:
        """What the key had when it was last seen, if that is known."""
        return self._kept.get(main)

    def keep(self, main: bytes, has: Registry) -> None:
        """Note what the key has."""
        with self._lock:
            self._kept.pop(main, None)
            if len(self._kept) >= self.KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[main] = has

    def forget(self, main: bytes) -> None:
        """Nothing is known of the key any more."""
        with self._lock:
            self._kept.pop(main, None)


def unpack(version: Version, life: bytes, belongs_to: bytes, packed: bytes) -> Registry:
    """What a reply says of a key."""
    return Registry(version, life, belongs_to, *_parse(packed))


def _parse(packed: bytes) -> tuple[_Entries, _Entries, _Entries]:
    logs: _Entries = {}
    collections: _Entries = {}
    namespaces: _Entries = {}
    at = 0
    while at < len(packed):
        end = at + 2 + int.from_bytes(packed[at : at + 2])
        sort, id = packed[at + 2], packed[at + 3 : end]
        numbers = (
            int.from_bytes(packed[end : end + 6]),
            int.from_bytes(packed[end + 6 : end + 12]),
            int.from_bytes(packed[end + 12 : end + _NUMBERS]),
        )
        if sort == ord("l"):
            logs[id] = numbers
        elif sort == ord("c"):
            collections[id] = numbers
        else:
            namespaces[id] = numbers
        at = end + _NUMBERS
    return logs, collections, namespaces


def log_heads(packed: bytes) -> dict[Part, LogHead]:
    """The logs among changed entries of a registry."""
    return {part_of(id): LogHead(count, last) for id, (count, last, _) in _parse(packed)[0].items()}
