"""The conformance suite of agent-sessions over the store: `pytest` in this folder."""

from pathlib import Path

import pytest
from file_store import FileStore

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.testing import ServedInOrder, StoreConformance


class TestFileStore(ServedInOrder, StoreConformance):
    """Each store is a process of its own that shares the folder with the others."""

    EXAMPLES = 10

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folders: dict[Clock, Path] = {}
        self.new_folder = tmp_path_factory

    def make_store(self, clock: Clock) -> Store:
        if clock not in self.folders:
            self.folders[clock] = self.new_folder.mktemp("sessions")
        return FileStore(self.folders[clock], clock)
