"""`AgentStore`: LangGraph's long-term memory, outside any one session."""

from .agent_store import AgentStore

__all__ = ["AgentStore"]
