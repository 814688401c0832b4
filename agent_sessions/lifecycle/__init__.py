"""What becomes of sessions, from `create` to `delete_user`: operations that need no turn, a module for each sort."""

from .copying import Copying
from .ending import EndedSessions, Ending, ExpiredSessions, SessionSummary
from .erasure import Erasing, ErasureReceipt
from .governing import Governing
from .listing import Listing
from .locking import Locking
from .making import Making
from .pages import SessionPage, Stats
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


class Lifecycle(Making, Ending, Listing, Copying, Locking, Erasing, Governing):
    """The lifecycle half of `SessionManager`."""
