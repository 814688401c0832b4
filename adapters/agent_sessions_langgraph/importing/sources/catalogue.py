"""Which checkpoints there are, in order, where the source itself can't tell it so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ..source import Place


class Catalogue:
    """Ids of threads and of their checkpoints. What does not fit into memory is in a file that nobody else sees."""

    def __init__(self) -> None:
        # Not used by the thread that made it, but by one at a time.
        self._ids = sqlite3.connect("", check_same_thread=False)
        self._ids.execute("CREATE TABLE ids (thread, ns, id, PRIMARY KEY (thread, ns, id)) WITHOUT ROWID")

    def add(self, ids: Iterable[tuple[str, str, str]]) -> None:
        """Enter checkpoints: thread, namespace, id."""
        with self._ids:
            self._ids.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", ids)

    def count(self) -> int:
        """How many threads there are."""
        return int(self._ids.execute("SELECT count(DISTINCT thread) FROM ids").fetchone()[0])

    def threads(self, after: str | None, limit: int) -> list[str]:
        """Ids of threads, from the first one after `after`."""
        found = self._ids.execute(
            "SELECT DISTINCT thread FROM ids WHERE ? IS NULL OR thread > ? ORDER BY thread LIMIT ?",
            (after, after, limit),
        )
        return [thread for (thread,) in found]

    def places(self, thread_id: str) -> list[Place]:
        """Where the checkpoints of a thread are, in order."""
        found = self._ids.execute("SELECT ns, id FROM ids WHERE thread = ? ORDER BY ns, id", (thread_id,))
        return [Place(*row) for row in found]

    def close(self) -> None:
        """Drop it."""
        self._ids.close()
