"""What a key remembers of its last commits."""

from __future__ import annotations

from agent_sessions.errors import CommitUnknownError, SessionConflictError, SessionError
from agent_sessions.stores.base import ABSENT, COMMITS_REMEMBERED, Commit, CommitStatus, Version

_ID_SIZE = 8


class CommitRing:
    """The ids of a key's last commits, 8 bytes each in one array; its end is the current revision."""

    __slots__ = ("_ids", "version")

    def __init__(self, ids: bytes = b"", revision: int = 0) -> None:
        self._ids = bytearray(ids)
        self.version = Version(revision, ids[-_ID_SIZE:]) if revision else ABSENT

    @property
    def ids(self) -> bytes:
        """The array, to be kept beside the revision."""
        return bytes(self._ids)

    @property
    def revision(self) -> int:
        """How many commits there were."""
        return self.version.revision

    @property
    def oldest(self) -> int:
        """The first revision whose commit id is still known."""
        return self.revision - len(self._ids) // _ID_SIZE + 1

    def add(self, commit_id: bytes) -> None:
        """Count a commit."""
        if len(commit_id) != _ID_SIZE:
            raise ValueError(f"a commit id has {_ID_SIZE} bytes, not {len(commit_id)}")
        self._ids += commit_id
        self.version = Version(self.revision + 1, commit_id)
        if len(self._ids) > COMMITS_REMEMBERED * _ID_SIZE:
            del self._ids[:_ID_SIZE]

    def find(self, commit_id: bytes) -> int | None:
        """The revision that a commit made, if it is remembered."""
        at = self._ids.find(commit_id)
        while at % _ID_SIZE:  # an id can also be found across two others; -1 % 8 is 7
            if at < 0:
                return None
            at = self._ids.find(commit_id, at + 1)
        return self.oldest + at // _ID_SIZE

    def has(self, version: Version) -> bool:
        """Whether the key was once, as far as is remembered, at this version."""
        at = (version.revision - self.oldest) * _ID_SIZE
        return at >= 0 and bool(version.commit_id) and self._ids[at : at + _ID_SIZE] == version.commit_id

    def status(self, commit_id: bytes, since: Version) -> CommitStatus:
        """Whether a commit that was expected to follow a version is stored."""
        if self.find(commit_id) is not None:
            return "stored"
        all_remembered = self.has(since) or since.revision == self.oldest - 1
        return "not_stored" if all_remembered else "unknown"


def overtaken(name: str, commit: Commit, revision: int) -> SessionError:
    """Why a commit can't follow the version that it expects: the key is at another revision by now."""
    expected = (commit.expected or ABSENT).revision
    if revision - expected > COMMITS_REMEMBERED:
        return CommitUnknownError(
            f"{name} is at revision {revision} and does not remember back to {expected + 1}, which this commit would "
            "have been: read it and see",
            commit_id=commit.id.hex(),
        )
    return SessionConflictError(f"{name} is at revision {revision}, not at the expected {expected}: open it again")
