"""What a store keeps of a key beside its parts, and what becomes of it: the same on every backend that runs Python."""

from __future__ import annotations

from msgspec import UNSET, Struct, field

from agent_sessions.errors import SessionConflictError, SessionEndedError, SessionExpiredError
from agent_sessions.stores.base import AMENDMENTS_REMEMBERED, Amend, Commit, Row
from agent_sessions.stores.lifetime import Course, Lifetime, Stamps


class Life(Struct):
    """The life of a key. msgspec encodes it."""

    course: Course
    stamps: Stamps
    lifetime: Lifetime
    own: dict[str, int | None]
    record_tag: bytes
    belongs_to: str | None = None
    counters: dict[str, int] = field(default_factory=dict)
    amendments: list[bytes] = field(default_factory=list)
    """The ids of the last ones."""

    @classmethod
    def begun(cls, commit: Commit, now: int) -> Life:
        """That of a key that a commit makes, before the commit."""
        course = commit.course or Course(now, now, None, commit.expires_at)
        return cls(course, Stamps(None, None, None), Lifetime(), dict(commit.own), commit.id)

    def is_over(self, now: int) -> bool:
        """Whether the key is gone."""
        return self.stamps.gone_at is not None and self.stamps.gone_at <= now

    def row(self, fields: dict[str, bytes] | None) -> Row:
        """As a store shows it."""
        return Row(
            *self.course[:2],
            self.stamps.gone_at,
            self.belongs_to,
            self.record_tag,
            fields,
            self.stamps.idle_at,
            self.stamps.ends_at,
            *self.course[2:],
            self.lifetime,
            self.own,
            self.counters.copy(),
        )

    # ------------------------------------------------------------------------ what becomes of it

    def commit(self, commit: Commit, now: int) -> None:
        """Note a commit."""
        if not commit.maintenance:
            if commit.course is None:
                self.course = self.course._replace(active_at=now)
            self._stamp(commit.lifetime)
        if commit.hold_ms is not None:
            self.prolong(now + commit.hold_ms)
        if self.belongs_to is None:
            self.belongs_to = commit.belongs_to
        if commit.fields:
            self.record_tag = commit.id
        self._count(commit.counters)

    def amend(self, amend: Amend, now: int, name: str) -> bool:
        """Note an amendment, but for its fields. False: there is nothing to do.

        Raises:
            SessionEndedError, SessionExpiredError, SessionConflictError: It is refused.
        """
        if amend.id in self.amendments or (amend.end and self.course.ended_at is not None):
            return False
        changes_record = bool(amend.fields) or amend.own is not None or amend.expires_at is not UNSET
        if (changes_record or amend.activity or amend.counters) and not amend.end:
            self.refuse_ended(now, name)
        if amend.expected_tag is not None and amend.expected_tag != self.record_tag:
            raise SessionConflictError(f"the record of {name} has changed: read it again")
        self.amendments = [*self.amendments, amend.id][-AMENDMENTS_REMEMBERED:]
        if amend.own is not None:
            self.own = dict(amend.own)
        if amend.expires_at is not UNSET:
            self.course = self.course._replace(expires_at=amend.expires_at)
        if amend.end:
            ran_out = self.stamps.status(now) == "ended"
            self.course = self.course._replace(ended_at=self.stamps.ends_at if ran_out else now)
        if amend.activity:
            self.course = self.course._replace(active_at=now)
        self._stamp(self.lifetime if amend.lifetime is None else amend.lifetime)
        if changes_record or amend.end:
            self.record_tag = amend.id
        self._count(amend.counters)
        return True

    def prolong(self, till: int) -> None:
        """Somebody works on the key until then."""
        self.stamps = self.course.prolonged(self.stamps, self.lifetime, till)

    def refuse_ended(self, now: int, name: str) -> None:
        """Raise if it has ended; say whether by the clock."""
        if self.stamps.status(now) == "ended":
            if self.row(None).expires:
                raise SessionExpiredError(f"{name} has expired")
            raise SessionEndedError(f"{name} has ended")

    def _stamp(self, lifetime: Lifetime) -> None:
        self.lifetime = lifetime.but(self.own)
        self.stamps = self.course.stamps(self.lifetime)

    def _count(self, more: dict[str, int]) -> None:
        for name, number in more.items():
            self.counters[name] = self.counters.get(name, 0) + number
