"""LangGraph in agent-sessions: a checkpointer that keeps threads in sessions."""

from .saver import SessionSaver

__all__ = ["SessionSaver"]
