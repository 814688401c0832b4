"""LangGraph in agent-sessions: a checkpointer that keeps threads in sessions, and a store that outlives them."""

from .saver import SessionSaver
from .store import AgentStore

__all__ = ["AgentStore", "SessionSaver"]
