"""Who may run a turn on a key of the in-memory store, and who waits for it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from agent_sessions.stores.base import HANDOVER_MS, Lease, LeaseWanted

ASKING_S = 1.0
"""How often a waiting owner shows that it is still there; well below `HANDOVER_MS`."""


class Waker(NamedTuple):
    """Where an owner waits: a future of its event loop."""

    loop: asyncio.AbstractEventLoop
    woken: asyncio.Future[None]

    def wake(self) -> None:
        """Wake it from whatever thread."""
        try:
            self.loop.call_soon_threadsafe(resolve, self.woken)
        except RuntimeError:  # its loop is closed: nobody waits there any more
            return


def resolve(woken: asyncio.Future[None]) -> None:
    """End a wait, if it has not ended by itself."""
    if not woken.done():
        woken.set_result(None)


class Place:
    """A place in the queue. It lasts as long as its owner goes on asking."""

    __slots__ = ("asked_at", "waker")

    def __init__(self) -> None:
        self.asked_at = 0
        self.waker: Waker | None = None


class TurnQueue:
    """The lease of a key and the queue for it, in order of arrival. `tidy` comes before all else."""

    __slots__ = ("lease", "queue")

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.queue: dict[str, Place] = {}

    def tidy(self, now: int) -> None:
        """Drop a lease that ran out and the places of those who stopped asking."""
        if self.lease is not None and self.lease.until <= now:
            self.lease = None
        if self.queue:
            for owner in [owner for owner, place in self.queue.items() if place.asked_at + HANDOVER_MS <= now]:
                self.leave(owner)

    def take(self, wanted: LeaseWanted, now: int) -> bool:
        """Take the lease, or a place in the queue for it."""
        next_owner = next(iter(self.queue), wanted.owner) if self.lease is None else self.lease.owner
        if next_owner == wanted.owner:
            self.hold(wanted.owner, wanted.ms, now)
            return True
        if wanted.queue:
            self.queue.setdefault(wanted.owner, Place()).asked_at = now
        return False

    def hold(self, owner: str, ms: int, now: int) -> None:
        """Give the owner the lease, or a new end to the one it has."""
        self.leave(owner)
        self.lease = Lease(owner, now if self.lease is None else self.lease.since, now + ms)

    def hand_over(self, now: int) -> None:
        """Take the lease away and reserve it for the first in the queue."""
        self.lease = None
        for owner in self.queue:
            self.hold(owner, HANDOVER_MS, now)
            return

    def leave(self, owner: str) -> None:
        """Give a place in the queue up, and wake who waits at it."""
        place = self.queue.pop(owner, None)
        if place is not None and place.waker is not None:
            place.waker.wake()

    def pause(self, owner: str, now: int) -> float:
        """For how many seconds a queued owner has nothing to do; 0 if it should open again."""
        place = self.queue.get(owner)
        if place is None:
            return 0.0
        place.asked_at = now
        first = next(iter(self.queue))
        ends = [] if self.lease is None else [self.lease.until]
        if first != owner:
            ends.append(self.queue[first].asked_at + HANDOVER_MS)  # it may have died
        return min(ASKING_S, *((end - now) / 1000 for end in ends)) if ends else 0.0

    def ends_at(self) -> int:
        """When the lease and all places are over, if nobody does anything more; 0 if there are none."""
        ends = [place.asked_at + HANDOVER_MS for place in self.queue.values()]
        return max([*ends, 0 if self.lease is None else self.lease.until])
