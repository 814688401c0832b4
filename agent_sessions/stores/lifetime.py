"""When a key is idle, has ended, and is gone: computed from what happened to it, and from how long it may last.

Nothing of this needs a background job: the stamps are written at each activity, and compared with the clock when they
are read. `idle_at <= ends_at <= gone_at` always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Status = Literal["active", "idle", "ended"]

Own = Mapping[str, int | None]
"""What a key has of its own in place of the lifetime in force: some of `Lifetime`'s fields."""


class Lifetime(NamedTuple):
    """How long a key lasts, in milliseconds; None: without end."""

    idle_ms: int | None = None
    """So long after its last activity it is idle."""
    end_ms: int | None = None
    """So long after it became idle it has ended."""
    absolute_ms: int | None = None
    """So long after it was made it has ended, whatever happened since."""
    ttl_ms: int | None = None
    """So long after its last activity it is gone, unless it ended before."""
    retention_ms: int | None = None
    """So long after its end it is gone."""

    def but(self, own: Own) -> Lifetime:
        """The same, but for what a key has of its own."""
        return self._replace(**own) if own else self


class Stamps(NamedTuple):
    """From these times on a key is idle, has ended, is gone. None: never."""

    idle_at: int | None
    ends_at: int | None
    gone_at: int | None

    def status(self, now: int) -> Status:
        """What it is at a time, at which it is not gone."""
        if self.ends_at is not None and self.ends_at <= now:
            return "ended"
        return "idle" if self.idle_at is not None and self.idle_at <= now else "active"


class Course(NamedTuple):
    """What happened to a key so far."""

    started_at: int
    active_at: int
    ended_at: int | None = None
    """When it was ended, by somebody or by a sweep."""
    expires_at: int | None = None
    """The end that it was given."""

    def expiry(self, lifetime: Lifetime) -> int | None:
        """The end by the clock alone: the given one, or that of its age."""
        return _first(self.expires_at, _after(self.started_at, lifetime.absolute_ms))

    def stamps(self, lifetime: Lifetime, *, busy_until: int = 0) -> Stamps:
        """The stamps of an activity. Until `busy_until` the key is neither idle nor gone, nor does it end by idling."""
        idle = _not_before(busy_until, _after(self.active_at, lifetime.idle_ms))
        idled_out = None if idle is None else _not_before(busy_until, _after(idle, lifetime.end_ms))
        faded = _not_before(busy_until, _after(self.active_at, lifetime.ttl_ms))
        ends = _first(self.ended_at, self.expiry(lifetime), idled_out)
        gone = faded if ends is None or (faded or ends) < ends else _after(ends, lifetime.retention_ms)
        ends = _first(ends, gone)
        return Stamps(_first(idle, ends), ends, gone)

    def prolonged(self, stamps: Stamps, lifetime: Lifetime, till: int) -> Stamps:
        """The stamps of a key that somebody is known to work on until then: none is nearer than it was."""
        busy = self.stamps(lifetime, busy_until=till)
        return Stamps(*map(_later, stamps, busy))


def _after(start: int, ms: int | None) -> int | None:
    return None if ms is None else start + ms


def _not_before(time: int, at: int | None) -> int | None:
    return None if at is None else max(at, time)


def _later(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)


def _first(*times: int | None) -> int | None:
    return min((at for at in times if at is not None), default=None)
