"""The store in one SQLite file: durable on one machine, without a server."""

from agent_sessions.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
