"""The store on Redis or Valkey."""

from __future__ import annotations

from agent_sessions.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
