"""How the store reaches Redis: one server, the one that sentinels name, or the nodes of a cluster."""

from __future__ import annotations

from agent_sessions.stores.redis.connections.clients import Clients, LoopClient
from agent_sessions.stores.redis.connections.cluster import Cluster, Remap
from agent_sessions.stores.redis.connections.options import Limits, by_client, by_url

__all__ = ["Clients", "Cluster", "Limits", "LoopClient", "Remap", "by_client", "by_url"]
