"""The in-memory store: the default, and the reference of what a store does."""

from agent_sessions.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
