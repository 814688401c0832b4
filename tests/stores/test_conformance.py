"""The conformance suite over our own stores."""

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.memory import MemoryStore
from agent_sessions.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    """One object stands for all processes: it has no backend but itself."""

    def make_store(self, clock: Clock) -> Store:
        if not hasattr(self, "memory") or self.memory._clock is not clock:
            self.memory = MemoryStore(clock)
        return self.memory
