"""The SQLite store: the conformance suite, and what only a file has."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import ServedInOrder, StoreConformance


class TestSQLiteStore(ServedInOrder, StoreConformance):
    """Each store with a thread and a connection of its own, on one file."""

    EXAMPLES = 30

    @pytest.fixture(autouse=True)
    def _start(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def make_store(self, clock: Clock) -> Store:
        return SQLiteStore(self.path, clock=clock)
