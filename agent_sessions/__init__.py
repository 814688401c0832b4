"""One session for the agents of every framework."""

from .admin import AdminManager
from .auth import AuthContext
from .codec import register_type
from .errors import SessionError
from .events import SessionEvent
from .lifecycle import EndedSessions, ErasureReceipt, ExpiredSessions, SessionPage, SessionSummary, Stats
from .manager import SessionManager
from .policy import Policy
from .record import LockInfo, SessionRecord
from .runs.activations import Activation, SkillCall
from .runs.adapters import Event, Pending
from .runs.execution import Hook, Run
from .runs.runner import Runner
from .runs.skills import skill
from .session import Collection, Log, Namespace, Session, current_session
from .settings import Settings
from .stores.memory import MemoryStore
from .sync import SyncAdminManager, SyncSession, SyncSessionManager

__all__ = [
    "Activation",
    "AdminManager",
    "AuthContext",
    "Collection",
    "EndedSessions",
    "ErasureReceipt",
    "Event",
    "ExpiredSessions",
    "Hook",
    "LockInfo",
    "Log",
    "MemoryStore",
    "Namespace",
    "Pending",
    "Policy",
    "Run",
    "Runner",
    "Session",
    "SessionError",
    "SessionEvent",
    "SessionManager",
    "SessionPage",
    "SessionRecord",
    "SessionSummary",
    "Settings",
    "SkillCall",
    "Stats",
    "SyncAdminManager",
    "SyncSession",
    "SyncSessionManager",
    "current_session",
    "register_type",
    "skill",
]
