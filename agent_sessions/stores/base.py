"""The store protocol: the page that the author of a backend reads.

A store keeps *keys*. Each key holds a record, values in namespaces, logs and collections, all as bytes that the
store never looks into. A key is atomic by itself: `open` shows one moment of it, `commit` changes it in one step or
not at all. Nothing here spans two keys.

Time is in whole milliseconds since 1970-01-01 UTC and comes from the store (`Opened.now`): one clock decides about
leases and expiry. What is past its `gone_at` is absent, whatever the backend's own sweep has done so far.

`agent_sessions.testing.StoreConformance` is the test of all that this page says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from msgspec import UNSET, Struct, UnsetType, field

from agent_sessions.stores.lifetime import Course, Lifetime, Own, Stamps, Status

Kind = Literal["session", "user", "app", "agent", "run", "system"]

FORMAT = 1
"""The layout of what is stored, kept in every record. A store refuses a newer one with `FORMAT_TOO_NEW`."""

COMMITS_REMEMBERED = 64
"""How many commit ids a key keeps: so far back a repeated commit is recognised, and a `known` version usable."""

AMENDMENTS_REMEMBERED = 16
"""How many ids of amendments a key keeps."""

HANDOVER_MS = 2_000
"""How long a lease handed to a waiter stays reserved, and how long a waiter that stopped asking keeps its place."""


class Discreet:
    """Of a struct: its `repr` shows no field, since what is stored must not get into a log."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


# --------------------------------------------------------------------------------------------------- addresses


class Key(NamedTuple):
    """What a store addresses. No operation reaches a key without its tenant."""

    tenant: str
    kind: Kind
    id: str


class Part(NamedTuple):
    """A log or a collection (or one value) of a key: its namespace and its name in it."""

    namespace: str
    name: str


class Version(NamedTuple):
    """The identity of a key's state at a moment.

    The revision counts commits from 1 and goes on counting as long as the key exists. The commit id (8 random bytes)
    tells a state from another one of the same number: after re-creation, or a failover that lost a commit.
    """

    revision: int
    commit_id: bytes


ABSENT = Version(0, b"")
"""The version of a key that does not exist."""


# --------------------------------------------------------------------------------------------------- what is read


class LogHead(NamedTuple):
    """Where a log stands. Items carry sequence numbers from 1 that are never reused, also not after pop and clear."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    """Items in the log."""
    last: int
    """The sequence number of its last item; 0 if it has none."""


class LogWanted(NamedTuple):
    """A log to read. With `count` and `last` the caller says which prefix it has already (0, 0: none)."""

    part: Part
    limit: int | None = None
    """The most items from the end that are wanted if the caller's prefix is of no use; None: all."""
    count: int = 0  # type: ignore[assignment]  # hides tuple.count
    last: int = 0


class LogRead(NamedTuple):
    """Items of a log, oldest first, that reach to its end."""

    head: LogHead
    items: list[bytes]
    continues: bool
    """True: `items` follow on the prefix that the caller has. False: forget the prefix, this is the window."""


class EntryRange(NamedTuple):
    """Entries of a collection whose key starts with `prefix` and lies strictly between `after` and `before`.

    Order is that of the keys' UTF-8 bytes.
    """

    part: Part
    prefix: str = ""
    after: str | None = None
    before: str | None = None
    reverse: bool = False
    limit: int | None = None


class Wanted(Struct, frozen=True):
    """The parts that an `open` asks for. Entries and ranges are answered in the order asked."""

    values: bool = True
    logs: Sequence[LogWanted] = ()
    entries: Sequence[tuple[Part, str]] = ()
    ranges: Sequence[EntryRange] = ()


class Known(NamedTuple):
    """What the caller's cache holds: it needs only what changed since."""

    version: Version
    record_tag: bytes


class LeaseWanted(NamedTuple):
    """A lease to take. Taking it is idempotent for its owner, and renews it."""

    owner: str
    """Unique for each turn. It names host, process and turn, for the person who asks who holds the session."""
    ms: int
    queue: bool
    """If the lease is not free: stand in the queue (under the owner's name), to be woken by `Store.wait`.

    A backend that can't keep a queue lets its waiters ask again and again, each between 100 ms and 1 s after its last
    try, and serves them in no order."""


class Lease(NamedTuple):
    """A live lease."""

    owner: str
    since: int
    until: int


class Row(Discreet, Struct, frozen=True):
    """What a store itself knows of a key, and the record's fields, each in the codec's bytes."""

    started_at: int
    active_at: int
    gone_at: int | None
    """From this time on the key is absent. None: never."""
    belongs_to: str | None
    """The user of a session, the session of a run: `find` lists by it."""
    record_tag: bytes
    """The id of the last write that changed a record field, an end, or what is its own."""
    fields: dict[str, bytes] | None
    """None: unchanged since `Known.record_tag`."""
    idle_at: int | None = None
    """From this time on it is idle. None: never."""
    ends_at: int | None = None
    """From this time on it has ended, and takes no more commits. None: never."""
    ended_at: int | None = None
    """When somebody ended it."""
    expires_at: int | None = None
    """The end that it was given."""
    lifetime: Lifetime = Lifetime()
    """What the times were computed from (`Course.stamps`)."""
    own: Own = field(default_factory=dict)
    """What of that is the key's own, whatever the lifetime in force."""
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def course(self) -> Course:
        """What happened to the key."""
        return Course(self.started_at, self.active_at, self.ended_at, self.expires_at)

    @property
    def stamps(self) -> Stamps:
        """What follows from that."""
        return Stamps(self.idle_at, self.ends_at, self.gone_at)

    @property
    def expires(self) -> bool:
        """Whether its end is one by the clock, and neither somebody's doing nor that it idled."""
        return self.ends_at is not None and self.ends_at == self.course.expiry(self.lifetime)


class Opened(Discreet, Struct, frozen=True):
    """A key at one moment."""

    now: int
    version: Version
    row: Row | None
    """None: the key is absent."""
    granted: bool = False
    """Whether the lease that was asked for is the caller's. If not, `lease` and `waiters` are all there is to know: the
    version is `ABSENT`, and the rest empty."""
    lease: Lease | None = None
    """The live lease, whoever holds it."""
    waiters: int = 0
    continues: bool = False
    """True: `known` is an ancestor of `version`; what is not mentioned here is unchanged. False: this is all."""
    values: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Namespace → name → value: each namespace of which a value changed since `known`, whole (empty: now empty)."""
    log_heads: dict[Part, LogHead] = field(default_factory=dict)
    """Every log of the key."""
    collections: dict[Part, int] = field(default_factory=dict)
    """Every collection of the key that has entries, with the revision that last changed it."""
    logs: list[LogRead] = field(default_factory=list)
    entries: list[bytes | None] = field(default_factory=list)
    ranges: list[list[tuple[str, bytes]]] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------- what is written


class LogChange(Discreet, Struct):
    """What becomes of a log: first `clear` or `pop` items from the end, then `append`."""

    clear: bool = False
    pop: int = 0
    append: list[bytes] = field(default_factory=list)


class CollectionChange(Discreet, Struct):
    """What becomes of a collection: first whole prefixes go, then entries are put, or deleted (None)."""

    delete_prefixes: list[str] = field(default_factory=list)
    entries: dict[str, bytes | None] = field(default_factory=dict)


class Commit(Discreet, Struct):
    """One atomic change of a key.

    It counts as activity: `active_at` becomes now, and the stamps follow. One that is marked as maintenance leaves
    them as they are, and so the key's place in every listing.
    """

    id: bytes
    """8 random bytes. A commit whose id the key remembers is answered as stored, and not applied again."""
    owner: str
    """The lease owner that commits. A live lease of somebody else refuses the commit."""
    expected: Version | None
    """The version that the key must have; `ABSENT`: it must not exist; None: any (and it is made if absent)."""
    hold_ms: int | None = None
    """Keep (or take) the lease for so long from now; None: release it and wake the next waiter."""
    lifetime: Lifetime = Lifetime()
    """The one in force, but for what the key has of its own."""
    own: Own = field(default_factory=dict)
    """Set when the key is made; an existing one keeps its own."""
    expires_at: int | None = None
    """Likewise: the end that it is given."""
    course: Course | None = None
    """With `expected` `ABSENT` only: what happened to it elsewhere, whence it is brought here."""
    maintenance: bool = False
    """True: no activity. Only of a key that exists: `expected` is its version."""
    belongs_to: str | None = None
    """Set when the key is made, or has none yet; an existing one stays."""
    values: dict[Part, bytes | None] = field(default_factory=dict)
    """None deletes."""
    logs: dict[Part, LogChange] = field(default_factory=dict)
    collections: dict[Part, CollectionChange] = field(default_factory=dict)
    fields: dict[str, bytes | None] = field(default_factory=dict)
    """Record fields; None removes one."""
    counters: dict[str, int] = field(default_factory=dict)
    """What is added to counters of the record, which begin at 0."""


class Committed(Discreet, Struct, frozen=True):
    """A commit that is stored.

    Of a repeated one only `version` is sure (that of the commit itself, also if later ones followed).
    """

    version: Version
    previous: Version
    """What the commit was applied to (`ABSENT`: it made the key)."""
    row: Row | None
    """The key's row after the commit, without fields. None if repeated."""
    previous_tag: bytes
    """The `record_tag` that the commit was applied to; that of the commit if it made the key."""
    log_heads: dict[Part, LogHead]
    """The logs that the commit changed."""
    repeated: bool = False


class Amend(Discreet, Struct):
    """One atomic change of a key's record alone: it needs no lease, makes no revision and no running turn conflict."""

    id: bytes
    """8 random bytes. An amendment whose id the key remembers is answered as stored, and not applied again."""
    expected_tag: bytes | None = None
    """The `record_tag` that the key must have; None: any."""
    activity: bool = False
    """It counts as activity."""
    end: bool = False
    """The key ends now. One that was ended already stays as it is, and nothing of this is applied; of one that ran
    out, `ended_at` becomes the time when it did."""
    lifetime: Lifetime | None = None
    """The one in force, to stamp by. None: as it was stamped."""
    own: Own | None = None
    """What the key has of its own from now on. None: what it has."""
    expires_at: int | UnsetType | None = UNSET
    """The end that it is given; None: none."""
    fields: dict[str, bytes | None] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


class Amended(Discreet, Struct, frozen=True):
    """An amendment that is stored, or that there was no need for."""

    now: int
    row: Row
    """The row after it, with fields."""
    changed: bool
    """False: it was repeated, or the key was ended before."""
    revision: int = 0
    """How many commits the key has seen."""


CommitStatus = Literal["stored", "not_stored", "unknown"]
"""`not_stored`: the key remembers every commit since, and this is none of them. `unknown`: it can't tell any more."""


# --------------------------------------------------------------------------------------------------- listing


class Found(NamedTuple):
    """A place in a listing: a key's id, its row (with fields), and how many commits it has seen."""

    id: str
    row: Row
    revision: int


Order = Literal["activity", "start"]
"""What a listing goes by. Keys move in the order of activity, and stay where they are in that of their start."""


class Cursor(NamedTuple):
    """Where a page ended. Places are ordered by (last activity or start, id), newest first."""

    at: int
    id: str


class Page(NamedTuple):
    """A page of a listing. `next` is None at its end."""

    now: int
    found: list[Found]
    next: Cursor | None


class Keys(NamedTuple):
    """A page of a scan. `next` is None at its end."""

    keys: list[Key]
    next: bytes | None


# --------------------------------------------------------------------------------------------------- the protocol


class Store(Protocol):
    """A backend.

    Every operation may be called from any event loop, any thread, and after a fork: a store keeps clients for each
    running loop. Cancelling one leaves the key before or after it, never between.

    Errors, the same for all: `STORE_UNAVAILABLE` when the backend can't be reached or does not answer in bounded
    time (the operation may have happened: the caller repeats it, every one is idempotent), `STATE_LOST` when a part
    that the record counts is gone, `FORMAT_TOO_NEW`.
    """

    never_waits: bool
    """True if no operation but `wait` ever gives control back to the event loop: it is all in this process."""

    async def open(
        self,
        key: Key,
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 - frozen
        known: Known | None = None,
        lease: LeaseWanted | None = None,
    ) -> Opened:
        """Read a key at one moment, in one round trip, and take its lease if asked to.

        Taking a lease of an absent key works (and leaves nothing but the lease). A lease is free if none is live and
        no waiter that is still asking came first. Reading is no activity.
        """
        ...

    async def commit(self, key: Key, commit: Commit) -> Committed:
        """Change a key in one atomic step.

        Raises:
            SessionConflictError: It is not at the expected version (and the commit was not stored before).
            SessionBusyError: Somebody else's lease is live.
            SessionNotFoundError: It was expected to exist and is absent.
            SessionEndedError, SessionExpiredError: It has ended; the latter by the clock (`Row.expires`).
            CommitTooLargeError: It is more than the backend can take in one step. Nothing is stored.
            CommitUnknownError: The commit is not among those that the key remembers, and so many followed on the
                expected version that it might have been.

        A blind commit (`expected` None) that is repeated after more than 64 others can't be recognised, and is applied
        again: its caller must not repeat it for longer than a lease lasts.
        """
        ...

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """Change a key's record in one atomic step, live lease or not; under a live one the key neither idles nor goes.

        Raises:
            SessionNotFoundError: It is absent.
            SessionEndedError, SessionExpiredError: It has ended, and this is more than to end it or to stamp it anew.
            SessionConflictError: Its record is not the expected one.
        """
        ...

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> CommitStatus:
        """Whether a commit that was expected to follow `since` is stored."""
        ...

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        """Move the end of a lease to `ms` from now; until then the key neither idles nor goes (`Course.prolonged`).

        Returns False if the owner does not hold it: somebody else does, or it ran out.
        """
        ...

    async def release(self, key: Key, owner: str) -> None:
        """Give a lease, or a place in the queue, up; the next waiter gets the lease. Not an error if there is none."""
        ...

    async def unlock(self, key: Key) -> Lease | None:
        """Break the live lease, whoever holds it, and give it to the next waiter; return what was broken."""
        ...

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        """Return when a queued owner is woken, at the latest after so many seconds. Then `open` again."""
        ...

    async def delete(self, key: Key, write_id: bytes) -> bool:
        """Remove a key with all its parts at once, live lease or not. False if it was absent.

        Repeated with the same id (8 random bytes) within a minute it answers as before and removes nothing more.
        """
        ...

    async def find(
        self,
        tenant: str,
        kind: Kind,
        *,
        belongs_to: str | None = None,
        status: Status | None = None,
        order: Order = "activity",
        limit: int = 50,
        cursor: Cursor | None = None,
    ) -> Page:
        """List a tenant's live keys of a kind, newest first. No page repeats a key."""
        ...

    async def count(
        self, tenant: str, kind: Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        """Count what `find` would list, without reading it."""
        ...

    async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
        """List keys that have ended without having been ended (`ended_at` is None), the longest ago first."""
        ...

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        """Go through every live key of every tenant and kind, about `limit` at a time, in no order: for maintenance.

        A key that is there from the first page to the last is on at least one of them, on several perhaps; a page may
        be empty, and yet not the last. A cursor stays good across processes and restarts.
        """
        ...

    async def detach(self) -> None:
        """Close what the store holds for the running event loop, which is about to end."""
        ...

    async def aclose(self) -> None:
        """Close all that the store itself opened. What is stored stays."""
        ...
