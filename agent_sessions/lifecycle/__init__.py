"""What becomes of sessions: making, ending, listing, limits, policies, erasure."""

from .erasure import ErasureReceipt
from .listings import SessionPage, Stats
from .operations import EndedSessions, ExpiredSessions, Lifecycle, SessionSummary
from .policies import Policies

__all__ = [
    "EndedSessions",
    "ErasureReceipt",
    "ExpiredSessions",
    "Lifecycle",
    "Policies",
    "SessionPage",
    "SessionSummary",
    "Stats",
]
