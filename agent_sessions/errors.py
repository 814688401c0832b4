"""Every error this library raises on purpose. Each has a stable `code` and says what to do next.

No message carries a stored value, a token or a key: ids, names, sizes and times only.
"""

from __future__ import annotations

from typing import ClassVar


class SessionError(Exception):
    """The base of all errors of agent-sessions.

    Attributes:
        code: A stable upper-case identifier, meant for programs: `SESSION_BUSY`, `INVALID_KEY`, ...
        field: The argument, variable or path inside a value that the error is about, if it is about one.
    """

    code: str = "SESSION_ERROR"
    field: str | None = None

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        if field is not None:
            self.field = field

    @property
    def message(self) -> str:
        """The text for people, without the code."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class SessionNotFoundError(SessionError):
    """The session does not exist, was deleted, or is past its time."""

    code = "SESSION_NOT_FOUND"


class SessionExpiredError(SessionError):
    """The session ended by its `expires_at` or its absolute timeout."""

    code = "SESSION_EXPIRED"


class SessionEndedError(SessionError):
    """The session was ended and takes no more writes."""

    code = "SESSION_ALREADY_ENDED"


class SessionExistsError(SessionError):
    """A session of that id exists already."""

    code = "SESSION_ALREADY_EXISTS"


class SessionBusyError(SessionError):
    """Another turn holds the session, and the time to wait for it is over."""

    code = "SESSION_BUSY"


class SessionConflictError(SessionError):
    """The session changed since this turn read it. Nothing of the turn was stored."""

    code = "SESSION_CONFLICT"


class SessionLimitError(SessionError):
    """The user has as many sessions as the policy allows."""

    code = "SESSION_LIMIT_REACHED"


class TurnClosedError(SessionError):
    """The session object was used after its turn was over."""

    code = "TURN_CLOSED"


class RunPausedError(SessionError):
    """The session's last run waits for a decision; resume or abandon it first."""

    code = "RUN_PAUSED"


class CommitTooLargeError(SessionError):
    """A value or a commit is larger than the limits of every store. Nothing was stored."""

    code = "COMMIT_TOO_LARGE"


class CommitUnknownError(SessionError):
    """The store did not answer: the commit may or may not have been stored.

    Attributes:
        commit_id: What `SessionManager.commit_status(session_id, commit_id)` resolves later.
    """

    code = "COMMIT_UNKNOWN"

    def __init__(self, message: str, *, commit_id: str) -> None:
        super().__init__(message)
        self.commit_id = commit_id


class StateLostError(SessionError):
    """The backend lost a part of the session's state that its record still counts."""

    code = "STATE_LOST"


class SerializationError(SessionError):
    """A value can't be stored, or a stored one can't be decoded; `field` is the path inside it."""

    code = "SERIALIZATION_FAILED"


class DecryptionError(SerializationError):
    """A stored value is encrypted and can't be decrypted here, or is not encrypted where it has to be."""

    code = "DECRYPTION_FAILED"


class FormatTooNewError(SessionError):
    """The session was written by a newer version of agent-sessions."""

    code = "FORMAT_TOO_NEW"


class StoreUnavailableError(SessionError):
    """The store could not be reached, or did not answer in time.

    Attributes:
        maybe_done: Whether the operation may have happened all the same: it was sent, and no answer came.
    """

    code = "STORE_UNAVAILABLE"

    def __init__(self, message: str, *, maybe_done: bool = True) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class ForbiddenError(SessionError):
    """An argument contradicts the auth context."""

    code = "FORBIDDEN"


class InvalidError(SessionError):
    """An argument or a setting is wrong. The code is `INVALID_` and what is wrong; `field` names it."""

    PREFIX: ClassVar[str] = "INVALID_"

    def __init__(self, what: str, message: str, *, field: str) -> None:
        super().__init__(message, field=field)
        self.code = f"{self.PREFIX}{what}"
