"""A store that somebody else wrote passes the suite, and serves sessions."""

from __future__ import annotations

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.testing import ServedInOrder, StoreConformance

from .dict_store import DictStore


class TestDictStore(ServedInOrder, StoreConformance):
    """The store in `dict_store.py`."""

    EXAMPLES = 20

    @pytest.fixture(autouse=True)
    def _start(self) -> None:
        self.stores: dict[Clock, DictStore] = {}

    def make_store(self, clock: Clock) -> Store:
        return self.stores.setdefault(clock, DictStore(clock))
