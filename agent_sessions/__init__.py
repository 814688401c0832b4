"""One session for the agents of every framework."""

from .codec import register_type
from .errors import SessionError
from .manager import SessionManager
from .record import LockInfo, SessionRecord
from .runs.activations import Activation, SkillCall
from .runs.adapters import Event, Pending
from .runs.execution import Hook, Run
from .runs.runner import Runner
from .runs.skills import skill
from .session import Collection, Log, Namespace, Session, current_session
from .settings import Settings
from .stores.memory import MemoryStore
from .sync import SyncSession, SyncSessionManager

__all__ = [
    "Activation",
    "Collection",
    "Event",
    "Hook",
    "LockInfo",
    "Log",
    "MemoryStore",
    "Namespace",
    "Pending",
    "Run",
    "Runner",
    "Session",
    "SessionError",
    "SessionManager",
    "SessionRecord",
    "Settings",
    "SkillCall",
    "SyncSession",
    "SyncSessionManager",
    "current_session",
    "register_type",
    "skill",
]
