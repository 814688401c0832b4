"""For tests: an agent that follows a script, a clock to move, and the suite that every store passes.

The suite needs pytest, pytest-asyncio and hypothesis; it is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agent_sessions.testing.agents import ScriptedAgent
from agent_sessions.testing.clock import FakeClock

if TYPE_CHECKING:
    from agent_sessions.testing.conformance import LostReplies, ServedInOrder, StoreConformance

__all__ = ["FakeClock", "LostReplies", "ScriptedAgent", "ServedInOrder", "StoreConformance"]

_CONFORMANCE = "agent_sessions.testing.conformance"


def __getattr__(name: str) -> Any:
    if name not in ("LostReplies", "ServedInOrder", "StoreConformance"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(_CONFORMANCE)  # before its first import
    return getattr(import_module(_CONFORMANCE), name)
