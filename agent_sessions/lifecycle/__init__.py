"""What becomes of sessions: making, ending, listing, limits, policies, erasure."""

from .listings import SessionPage, Stats
from .operations import EndedSessions, ExpiredSessions, Lifecycle, SessionSummary
from .policies import Policies

__all__ = [
    "EndedSessions",
    "ExpiredSessions",
    "Lifecycle",
    "Policies",
    "SessionPage",
    "SessionSummary",
    "Stats",
]
