"""What a store remembers of the keys that it last worked on."""

from __future__ import annotations

from typing import Generic, TypeVar

from agent_sessions.stores.dynamodb.layout.records import Record
from agent_sessions.stores.dynamodb.reading import Reader
from agent_sessions.stores.dynamodb.service.requests import Requests

_RECORDS_KEPT = 4096

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """A dictionary for all threads that forgets what was kept the longest ago.

    It has no lock, which a fork could leave locked: each step is one that the interpreter does at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """What is remembered."""
        return self._kept.get(key)

    def keep(self, key: K, value: V) -> None:
        """Remember."""
        self._kept.pop(key, None)
        self._kept[key] = value
        if len(self._kept) > self._size:
            try:
                self.forget(next(iter(self._kept)))
            except RuntimeError:  # another thread was in between; it did the same
                return

    def forget(self, key: K) -> None:
        """Forget."""
        self._kept.pop(key, None)


class Records:
    """The records that were last seen, with their directories, by partition."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._records: Memory[str, Record] = Memory(_RECORDS_KEPT)

    def get(self, partition: str) -> Record | None:
        """What is remembered."""
        return self._records.get(partition)

    def keep(self, partition: str, record: Record) -> None:
        """Remember a record, with the directory if that is known."""
        self._records.keep(partition, self._completed(partition, record))

    def forget(self, partition: str) -> None:
        """Forget."""
        self._records.forget(partition)

    async def whole(self, partition: str, record: Record) -> Record:
        """A record with its directory, which is read if it is not remembered.

        Raises:
            Torn: There is another by now.
        """
        record = self._completed(partition, record)
        if not record.is_whole:
            record = record.with_directory(await Reader(self._requests, partition, record).directory())
            self._records.keep(partition, record)
        return record

    def _completed(self, partition: str, record: Record) -> Record:
        """A record with the directory that is remembered of it, if it is still the same."""
        kept = self._records.get(partition)
        if record.is_whole or kept is None or kept.directory is None:
            return record
        same = kept.names == record.names and kept.changes.directory == record.changes.directory
        return record.with_directory(kept.directory) if same else record
